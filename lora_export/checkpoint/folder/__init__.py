"""What a folder holds around its weights, and where its weights are."""
