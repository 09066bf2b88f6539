"""Texts as tokens: language modelling, labels, pairs, conversations."""
