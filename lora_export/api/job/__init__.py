"""From the user's paths and options to a checked and planned job."""
