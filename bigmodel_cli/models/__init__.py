"""Models written from scratch: one file per family, one registered function per model."""
