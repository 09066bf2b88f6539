"""Metrics: what a task's outputs are worth, each registered with its direction and how a person reads it."""
