"""Models from zero: one file a family, one registered function a model."""
