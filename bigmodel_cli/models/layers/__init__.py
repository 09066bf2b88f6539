"""Layers and building blocks that several models share."""
