"""How a sample of each kind of input is shown on a page, one file a kind."""
