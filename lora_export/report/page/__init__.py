"""A report as one page for people: HTML for a browser, Markdown for a pull request."""
