"""The command line: one file a command, one call into the API each."""

from lora_export.cli.main import main

__all__ = ["main"]
