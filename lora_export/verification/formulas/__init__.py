"""Formulas that the proofs of several layer kinds share, without any code of the merge."""
