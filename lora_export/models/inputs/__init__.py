"""The inputs of a model: declared in words, by arrays, or known from its architecture."""
