"""Forward passes without training: the fastest form of a model, and its predictions for files."""
