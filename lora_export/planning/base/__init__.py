"""The base before the merge: without own factors, with repeated layers, with its tied names."""
