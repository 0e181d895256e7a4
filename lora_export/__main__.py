"""Run the command line as `python -m lora_export`, where its script is not on PATH."""

from __future__ import annotations

from lora_export.cli import main

if __name__ == "__main__":
    main()
