"""Proves a result: its files, its weights, its outputs as a model, and those in a runtime."""
