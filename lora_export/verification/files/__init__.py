"""Checks of what lies around the weights."""
