"""Tensors that adapters hold in full: where they go, and that none is lost."""
