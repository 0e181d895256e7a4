"""Facts that no adapter file holds: from options, the architecture or the user's model."""
