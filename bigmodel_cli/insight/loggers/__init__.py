"""Loggers record a run's events in addition to metrics.jsonl: ``train --log NAME``.

A logger is a context manager. It takes the run's folder and the earlier events of a resumed run, and yields a
function that takes each new event.
"""
