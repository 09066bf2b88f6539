"""Tokenized text: language modelling, classification, translation pairs, conversations."""
