"""Metrics of a task's outputs, each registered with its direction and its number format."""
