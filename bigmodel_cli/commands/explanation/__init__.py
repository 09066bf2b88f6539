"""``explain`` by the kind of input."""
