"""The proof of a result: by weights, and as a model where the network can be built."""
