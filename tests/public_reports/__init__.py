"""Public reports of merges that went wrong, each held against this product on a tiny model.

One file a topic, each with a list REPORTS; test_public_reports.py walks them.
"""
