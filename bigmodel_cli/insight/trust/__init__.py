"""How far the answers of a classifier can be trusted."""
