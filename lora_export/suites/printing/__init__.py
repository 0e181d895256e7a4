"""Print the rows of a suite: for a terminal, for JUnit, for GitHub, as a page."""
