"""Which parts of an image an answer comes from, and whether an explanation can be believed."""
