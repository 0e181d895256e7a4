"""What stdout is: how wide its lines may be, and whether words may have a colour."""

from __future__ import annotations

import os
import shutil
import sys

import click

from lora_export.cli._streams import echo_error
from lora_export.report.columns import WIDTH, fitted

_NARROWEST = 40
"""The least width that text is wrapped to; a terminal that reports less wraps it itself."""

_COLOURS = {
    "PROVED": "green",
    "RESTORED": "green",
    "ok": "green",
    "UNCHANGED": "cyan",
    "PLANNED": "cyan",
    "NOT PROVED": "yellow",
    "STOPPED": "yellow",
    "REFUSED": "red",
    "FAILED": "red",
}


def text_width() -> int:
    """Return the characters of a line: the terminal's, or a fixed number for files and pipes."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, _NARROWEST)


def print_message(text: str) -> None:
    """Print a message on stderr, wrapped at words on a terminal; a program gets it in one line."""
    echo_error(fitted(text, text_width()) if sys.stderr.isatty() else text)


def is_coloured() -> bool:
    """Return whether words have colours: on a terminal that has some, unless NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def coloured(word: str) -> str:
    """Return a word of the outcome in its colour; spaces before it stay."""
    return click.style(word, fg=_COLOURS[word.strip()], bold=True)
