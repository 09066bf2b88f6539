"""Recommended items and ratings, for ``predict`` and ``explain``."""
