"""What the proofs of several layer kinds have in common; it shares no code with the merge."""
