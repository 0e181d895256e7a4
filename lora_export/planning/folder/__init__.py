"""Edits of the files around the weights."""
