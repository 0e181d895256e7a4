"""Finds the module, tensor or node that a failed check comes from."""
