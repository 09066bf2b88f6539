"""Plans a run for other machines: memory, communication, time and cost, from shapes alone."""
