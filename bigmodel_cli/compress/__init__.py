"""Making a trained model smaller and quicker: methods, a file a family, and the search that combines them."""
