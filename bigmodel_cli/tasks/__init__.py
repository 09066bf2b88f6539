"""Tasks: how to prepare batches, compute the loss and report metrics. One file per task."""
