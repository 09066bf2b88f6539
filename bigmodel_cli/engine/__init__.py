"""How training, evaluation and checkpoints are done; knows no model, data set or task by name."""
