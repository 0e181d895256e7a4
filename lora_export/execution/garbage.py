"""Keeps Python's garbage collector from searching through objects that stay alive."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn the collector off inside the block; it is as it was afterwards.

    An import or a traced model makes many objects. The collector would then search through all
    objects, torch's among them, again and again.
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
    """Import torch, and keep the collector from its objects inside the block.

    All objects that exist at the start are frozen. In a program that has frozen objects itself,
    nothing is changed.
    """
    with no_collection():
        import torch  # noqa: F401 - importing it is the point

        # gc.unfreeze() knows only all objects: it would also thaw those of the caller.
        is_ours = gc.get_freeze_count() == 0
        if is_ours:
            gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
