"""What holds for a whole run: what tests share, what is sampled, and how work is counted."""
