"""Weights that cost no memory: a model is traced for its graph, and nothing reads its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import torch
    from torch import Tensor, nn

# What config.json notes about a folder's past: other paths, other versions, the same model.
_NOTES = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash"})


def blank_state(skeleton: nn.Module, dtype: str, *, but_for: Container[str]) -> dict[str, Tensor]:
    """A state dict for the model whose skeleton (on meta) is given: zeros, floats in `dtype`.

    but_for: names whose first element is one instead. transformers takes a tie apart when it finds
    other values at its two ends; this lets it find them.
    """
    import torch

    state = {}
    for name, tensor in skeleton.state_dict().items():
        kind = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = blank_tensor(tuple(tensor.shape), kind)
        if name in but_for:
            state[name].view(-1)[0] = 1
    return state


def without_notes(config: Mapping[str, object]) -> dict[str, object]:
    """A configuration without what does not describe the model, on every level."""
    return {
        key: without_notes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOTES
    }


def blank_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros of its own, on pages that no memory stands behind until it is written to.

    The system maps every page that is only read to one page of zeros.
    """
    import mmap
    from math import prod

    import torch

    size = prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    if not hasattr(mmap, "MAP_PRIVATE"):  # shared pages would be given memory when they are read
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
