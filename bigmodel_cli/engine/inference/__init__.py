"""Inference: the fastest form of a model, and its predictions for files."""
