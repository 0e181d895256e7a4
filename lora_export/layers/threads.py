"""The number of threads that torch computes with.

A merge has threads of its own, each with one thread of torch. Some products of the reference
libraries have other last bits with one thread; those get the number that torch was set to before.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_library: list[int] = []
"""The number of threads before each merge that is under way; the first is the user's own."""


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch compute with one thread in the block, and in each thread that begins there."""
    import torch

    _library.append(torch.get_num_threads())
    try:
        with _torch_threads(1):
            yield
    finally:
        _library.pop()


@contextmanager
def library_threads() -> Iterator[None]:
    """Let torch compute with as many threads as before the merge, as the libraries do.

    Convolutions, and products with few rows or columns, have other last bits with one thread.
    """
    import torch

    with _torch_threads(_library[0] if _library else torch.get_num_threads()):
        yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Set the number for the calling thread, and for those that begin in the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
