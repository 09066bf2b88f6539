"""One training run, from recipe to last checkpoint: setup, training loop, evaluation and run folder."""
