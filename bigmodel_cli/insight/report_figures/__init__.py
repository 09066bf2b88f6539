"""Figures of report pages, one file each."""
