"""Optimizers, schedules and losses."""
