"""Merge a trained LoRA into its base, prove the result, and write it without overhead."""

__version__ = "0.1.0"
