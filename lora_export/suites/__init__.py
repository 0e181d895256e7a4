"""Parity suites: many merges that must hold, in a TOML file, run and reported together."""
