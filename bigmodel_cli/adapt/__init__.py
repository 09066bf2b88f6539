"""Fine-tuning methods."""
