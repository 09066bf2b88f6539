"""Weights and activations at reduced precision."""
