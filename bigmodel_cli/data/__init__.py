"""Data sources: one file per source, one registered function per data set."""
