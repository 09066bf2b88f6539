"""Files: written whole or not at all, locked, owned, read where they lie, here or at an address."""
