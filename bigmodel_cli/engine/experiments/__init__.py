"""Experiments that use several runs: studies, searches, reproductions and dry runs."""
