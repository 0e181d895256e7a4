"""The program's standard streams: closed ones, full ones, and what may be shown on them.

A result that was published stands, whether or not its report can be written. The exit status
reports a stdout that could not be written. A pipe that its reader has closed is no failure.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import click

from lora_export.shown import shown_lines

LOST = 7
"""The exit status where all was done but the report: the system refused a write (StorageError)."""

_lost: list[str] = []
"""Why stdout could not be written, at the first failure; empty where all was written."""


class _Closed(io.TextIOBase):
    """A stdout that was closed before the program began; Python has None for it."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def open_closed_streams() -> None:
    """Open descriptors 0 to 2 on /dev/null where they are closed, and let stdout show any name.

    The first file that the run opens would get the number of a closed stdout. A library in C that
    prints would then write into that file.
    """
    while (lowest := os.open(os.devnull, os.O_RDWR)) < 3:  # the lowest free number is taken
        pass
    os.close(lowest)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    if sys.stdout is None:
        sys.stdout = _Closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters


def echo(text: str) -> None:
    """Write a report or JSON to stdout; a failure is remembered for `report_lost_output`.

    text: what a report's printer has made harmless already, since its words may have colours.
    """
    try:
        click.echo(text)
    except OSError as error:
        lose_stdout(error)


def echo_error(text: str, file: IO[str] | None = None) -> None:
    """Write lines to stderr, where that can be written; other control characters are escaped.

    file: stderr, where another one is in its place at the moment.
    """
    file = file or sys.stderr
    try:
        click.echo(shown_lines(text.split("\n")), file=file)
    except OSError:
        _discard(file)


def show_error(error: click.ClickException) -> None:
    """Write click's own error to stderr, where that can be written."""
    try:
        error.show()
    except OSError:
        _discard(sys.stderr)


def lose_stdout(error: OSError) -> None:
    """Remember why stdout could not be written, and write nothing more to it."""
    if error.errno != errno.EPIPE:
        _lost.append(error.strerror or str(error))
    _discard(sys.stdout)


def report_lost_output() -> int:
    """Report on stderr why stdout could not be written; return the status of that, 0 for none."""
    if not _lost:
        return 0
    echo_error(f"error: the report could not be written to stdout: {_lost[0]}")
    _lost.clear()
    return LOST


def _discard(stream: IO[str]) -> None:
    """Send the rest to /dev/null: Python writes again, at its end, what a stream still holds."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
