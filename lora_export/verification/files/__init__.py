"""Checks the files around the weights."""
