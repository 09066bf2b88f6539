"""``data inspect`` by the kind of data."""
