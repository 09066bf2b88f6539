"""The foundation of the other packages: recipes, registries, shared types, errors, and strict readers."""
