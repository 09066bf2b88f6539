"""Changes to a trained model's layers: low-rank adapters, pruned channels."""
