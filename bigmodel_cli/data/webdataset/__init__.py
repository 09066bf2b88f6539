"""WebDataset tar shards, read by index or streamed."""
