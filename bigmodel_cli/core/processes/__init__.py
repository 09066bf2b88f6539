"""Processes: their children, limits, memory and signals, on every system."""
