"""What every other package speaks: recipes, registries, shared types and errors."""
