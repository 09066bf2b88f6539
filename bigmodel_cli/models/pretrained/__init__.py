"""Conversion of published weights to our layout and back."""
