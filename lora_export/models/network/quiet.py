"""Silence around the exporters, which print, log and warn about their own insides."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No prints, no warnings and no log records inside the block.

    Not thread-safe: streams, warning filters and logging threshold belong to the process.
    """
    threshold = logging.root.manager.disable
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        # By threshold, not logger by logger: exporting imports modules that make new ones.
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(threshold)
