"""The proof of a result, with a model or without."""
