"""The base as it takes part: without factors, with layers repeated, and names of one parameter."""
