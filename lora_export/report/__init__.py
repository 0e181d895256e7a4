"""The outcome of a command as data, and its forms: text, JSON, the manifest, the model card."""
