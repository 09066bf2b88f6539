"""What a run will take on machines that are not here: memory, communication, time and cost, from shapes alone."""
