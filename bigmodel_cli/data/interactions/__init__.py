"""Interactions of users with items: tables, splits, samples."""
