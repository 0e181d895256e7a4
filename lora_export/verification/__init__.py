"""Prove that a result is what it must be: by its weights, as a model, and in its runtime."""
