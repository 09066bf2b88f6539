"""One run, from its recipe to its last checkpoint: assembling, the loop, evaluation, the run folder."""
