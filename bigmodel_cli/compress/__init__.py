"""Make a trained model smaller and faster: methods, one file per family, and the search that combines them."""
