"""How many threads torch computes with: a merge has its own, and some last bits depend on it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many in the block, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def several_threads() -> AbstractContextManager[None]:
    """Torch computes convolutions otherwise, with other last bits, where it may use one thread.

    The libraries run them with all processors; two give the same bits as any larger number.
    """
    return torch_threads(2)
