"""Tensors that adapters hold in full: their places in the result, and the account of them all."""
