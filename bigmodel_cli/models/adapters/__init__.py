"""Modifications of a trained model's layers: low-rank adapters, pruned channels."""
