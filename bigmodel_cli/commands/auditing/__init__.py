"""What ``audit`` looks for."""
