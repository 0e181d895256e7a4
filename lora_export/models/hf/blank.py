"""Weights that take no memory: a model is traced for its graph, and nothing reads its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import torch
    from torch import Tensor, nn

# Entries of config.json about where a folder was made. The model is the same without them.
_NOTES = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash"})


def blank_state(skeleton: nn.Module, dtype: str, *, marked: Container[str]) -> dict[str, Tensor]:
    """Make a state dict of zeros for a model; floating tensors have `dtype` (torch's name).

    Args:
        skeleton: the model on the meta device.
        dtype: of the model that is built with it.
        marked: names whose first element is one instead of zero. transformers separates a tie when
            the two ends have different values; a mark makes them different.
    """
    import torch

    state = {}
    for name, tensor in skeleton.state_dict().items():
        kind = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = blank_tensor(tuple(tensor.shape), kind)
        if name in marked:
            state[name].view(-1)[0] = 1
    return state


def without_notes(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config without the entries that do not describe the model, on every level."""
    return {
        key: without_notes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOTES
    }


def blank_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a tensor of zeros with a storage of its own, which takes no memory until it is written.

    The system maps every private page that is only read to one page of zeros.
    """
    import mmap
    from math import prod

    import torch

    size = prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    if not hasattr(mmap, "MAP_PRIVATE"):  # shared pages take memory when they are read
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
