"""Image files, decoded to arrays."""
