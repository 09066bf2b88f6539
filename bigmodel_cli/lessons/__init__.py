"""The course: one lesson a file, each a function that computes what it shows. `bigmodel lesson` runs them."""
