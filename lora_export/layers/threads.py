"""How many threads torch computes with, where that decides the last bits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def several_threads() -> Iterator[None]:
    """Torch computes convolutions otherwise, with other last bits, where it may use one thread.

    The libraries run them with all processors; two give the same bits as any larger number.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
