"""Data sources: one file a source, one registered function a data set."""
