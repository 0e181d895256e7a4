"""Carry a plan out: the arithmetic of the merge, and the writing of its result."""
