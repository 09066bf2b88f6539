"""Conversations as tokens: templates, and which tokens contribute to the loss."""
