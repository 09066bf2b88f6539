"""Metrics, reports, plots and explanations."""
