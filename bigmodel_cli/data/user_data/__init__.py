"""The user's own files: what a path given to ``--data`` holds."""
