"""Plans a run for other machines: memory, communication, time and cost, computed from shapes."""
