"""Models that generate: their cache of keys and values as plain inputs and outputs."""
