"""What ``env-check`` is asked for, and reports for a CI."""
