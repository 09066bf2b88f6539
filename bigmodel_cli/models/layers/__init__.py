"""Layers and building blocks shared by several models."""
