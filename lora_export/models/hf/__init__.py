"""Models of Hugging Face folders, built by transformers (extra hf)."""
