"""Files in fewer bits: which weights are rounded, and how they are read back."""
