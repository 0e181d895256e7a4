"""The edits of the files around the weights."""
