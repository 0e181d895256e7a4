"""Decide everything before a byte is written: names, facts, arithmetic, output files."""
