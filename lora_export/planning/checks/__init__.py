"""What is checked and noted beside the fitting: the inputs, unused options, the user's model."""
