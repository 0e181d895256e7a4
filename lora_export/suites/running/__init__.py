"""Run the rows of a suite: one verb for each, judged by what its case expects."""
