"""What a run is built from: data, models, optimizers, and the weights it starts from."""
