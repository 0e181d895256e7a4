"""A model in another float dtype, without the memory of both at once."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

PIECE = 64 << 20
"""Bytes of cast weights after which the memory of the old ones goes back to the system."""


def to_float64(model: nn.Module) -> nn.Module:
    """Cast all floating weights and buffers to float64, as `model.double()`, in place."""
    from torch import nn

    return _piecewise(model, nn.Module.double)


def to_float32(model: nn.Module) -> nn.Module:
    """Cast all floating weights and buffers to float32, as `model.float()`, in place."""
    from torch import nn

    return _piecewise(model, nn.Module.float)


def _piecewise(model: nn.Module, cast: Callable[[nn.Module], object]) -> nn.Module:
    """Cast module by module, the inner ones first; return the model.

    Each old weight is freed after its new one is made. glibc keeps the memory of those below 32 MB
    for later use, and a wider weight does not fit into it. Without malloc_trim a good part of the
    old model would stay beside the new one.
    """
    waiting = 0
    for module in reversed(list(model.modules())):
        cast(module)
        waiting += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
        if waiting >= PIECE:
            _give_back()(0)
            waiting = 0
    _give_back()(0)
    return model


@cache
def _give_back() -> Callable[[int], object]:
    """Return glibc's malloc_trim; with another C library a function that does nothing."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", lambda _: 0)
