"""The table of all mistakes: how each is made, and how it must be named."""

from foreign_merges.directions import OF_DIRECTIONS
from foreign_merges.factors import OF_FACTORS
from foreign_merges.others import OF_OTHERS

MISTAKES = {**OF_FACTORS, **OF_DIRECTIONS, **OF_OTHERS}
