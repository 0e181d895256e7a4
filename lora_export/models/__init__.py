"""Where a runnable model comes from: the user's own factory, or a Hugging Face folder."""
