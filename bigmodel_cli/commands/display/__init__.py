"""What a person sees in a terminal, and rows of answers in a file."""
