"""Serve an exported model over HTTP, with a web page, batching, limits and metrics. Does not import torch."""
