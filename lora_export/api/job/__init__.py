"""What a command is asked to do, checked and planned."""
