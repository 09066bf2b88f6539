"""Several processes: the launcher, the process group, and how a model is spread over ranks."""
