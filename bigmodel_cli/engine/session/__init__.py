"""A run from start to end in its folder: the lock, checkpoints, signals, logs and the final status."""
