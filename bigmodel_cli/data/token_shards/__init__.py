"""Tokenized text of any size, in memory-mapped files."""
