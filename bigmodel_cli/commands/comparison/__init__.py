"""What ``compare`` finds."""
