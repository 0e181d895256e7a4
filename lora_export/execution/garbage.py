"""Python's search for garbage, put off or kept small while much is made that lives."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is looked for inside the block; the collector is as it was afterwards.

    An import or a traced model makes so many objects that the collector goes through all there are,
    torch's among them, again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def torch_at_hand() -> Iterator[None]:
    """Torch is imported for the block, in which its many objects are not gone through.

    Nor are all others that were there before; in a program that has frozen its own, none more.
    """
    with no_collection():
        import torch  # noqa: F401

        is_ours = gc.get_freeze_count() == 0
        if is_ours:
            gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
