"""What is typed: flags, options, layers of a recipe, paths and addresses, and what is wrong with them."""
