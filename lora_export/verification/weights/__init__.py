"""The weight level: every merged tensor held against its formula."""
