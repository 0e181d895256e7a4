"""The graph of a network, captured without its weights."""
