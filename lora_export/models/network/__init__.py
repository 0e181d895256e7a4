"""A torch network in the hand: called, cast, filled with tensors, and its low-rank modules read."""
