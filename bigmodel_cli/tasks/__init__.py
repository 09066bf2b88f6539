"""What a batch means: one file a task."""
