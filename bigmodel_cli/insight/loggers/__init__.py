"""Where a run's events go beside metrics.jsonl: ``train --log NAME``.

A logger takes the run's folder and the events that are there already (of a run that is resumed) and, as a context
manager, gives a function that takes each further event.
"""
