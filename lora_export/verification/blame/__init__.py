"""Which module, tensor or node a failed check comes from."""
