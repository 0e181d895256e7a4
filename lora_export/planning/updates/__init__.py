"""Low-rank updates: the base tensor of each, and the arithmetic that merges it."""
