"""Export formats, one file each, and the proof that compares the file with its source."""
