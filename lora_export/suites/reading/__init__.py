"""From a suite's text to checked cases, and from found values back to the text."""
