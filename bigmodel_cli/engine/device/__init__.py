"""The machine: which device there is, what is fastest on it, and whether it works."""
