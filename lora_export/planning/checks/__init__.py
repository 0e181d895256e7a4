"""Checks outside of the fitting: of the inputs, of unused options, and of the user's model."""
