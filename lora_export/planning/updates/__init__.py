"""Low-rank updates: the base tensor of each, and the arithmetic that it asks for."""
