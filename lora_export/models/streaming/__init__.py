"""Weights that are read from their files while a model runs, block by block, and never held."""
