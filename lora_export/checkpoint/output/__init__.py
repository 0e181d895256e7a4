"""Outputs: staged, written in place, and published by one rename."""
