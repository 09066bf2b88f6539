"""Builds the parts of a run: data, model, optimizer, and the weights that training starts from."""
