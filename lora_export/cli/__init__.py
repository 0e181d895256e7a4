"""The command line: one file for each command, which makes one call into the API."""

from lora_export.cli.main import main

__all__ = ["main"]
