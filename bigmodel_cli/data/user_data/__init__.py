"""The user's own files, given as a path to ``--data``."""
