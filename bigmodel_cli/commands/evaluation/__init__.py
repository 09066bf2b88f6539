"""What ``eval`` measures beside its report."""
