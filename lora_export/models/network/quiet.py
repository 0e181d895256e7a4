"""Silence around the exporters, which print, log and warn about their own internals."""

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
    """Discard prints, warnings and log records inside the block.

    It is not thread-safe: streams, warning filters and logging threshold belong to the process.
    """
    threshold = logging.root.manager.disable
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        # The threshold, not each logger: exporting imports modules that make new loggers.
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(threshold)
