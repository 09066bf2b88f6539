"""Checkpoints: written atomically, verified before use, safe to open whoever made them."""
