"""How many threads torch computes with: a merge has its own, and some last bits depend on it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_library: list[int] = []
"""What torch was set to before each merge that is under way; the first is the user's own."""


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch computes with one thread in the block, and in each thread that begins there."""
    import torch

    _library.append(torch.get_num_threads())
    try:
        with _torch_threads(1):
            yield
    finally:
        _library.pop()


@contextmanager
def library_threads() -> Iterator[None]:
    """As many as torch was set to before the merge, which is what the libraries compute with.

    Convolutions and products with few rows or columns have other last bits with one thread.
    """
    import torch

    with _torch_threads(_library[0] if _library else torch.get_num_threads()):
        yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Of the calling thread, and of those that begin in the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
