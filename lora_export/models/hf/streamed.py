"""A Hugging Face model whose weights stay in their files; transformers itself places them.

transformers loads stand-ins that take no memory, under the checkpoint's own names. The parameter
that holds a stand-in afterwards is where transformers would have put the stored tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lora_export.models.hf.blank import blank_tensor
from lora_export.models.streaming.row_sources import FileRows, JoinedRows, StackedRows

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from torch import Tensor, nn

    from lora_export.models.streaming.row_sources import RowSource
    from lora_export.records import Checkpoint, NameTable, Place, TensorRef


class StandIns(NamedTuple):
    """Stand-ins for a checkpoint's tensors, and what each stands for."""

    state: dict[str, Tensor]
    """By the name under which transformers loads it."""
    sources: dict[str, RowSource]
    """The rows of each, by the same names."""
    obstacle: str = ""
    """Why the checkpoint cannot be read this way, if so."""


class Placed(NamedTuple):
    """A model whose weights are read from a checkpoint while it runs."""

    checkpoint: Checkpoint
    """Where the weights lie."""
    model: nn.Module
    """As transformers builds it: ties are not separated yet."""
    info: Mapping[str, Any]
    """What transformers reports of missing and mismatched keys."""
    unknown: list[str]
    """Tensors of the model that stand for no stored one."""


def stand_ins(
    checkpoint: Checkpoint, names: NameTable | None, dtype: str, *, marked: Container[str]
) -> StandIns:
    """Make the stand-ins of a checkpoint; floating ones have `dtype` (torch's name).

    Args:
        checkpoint: what is to be read.
        names: the model's table of names; experts that are stored one by one become one stack.
        dtype: of the model.
        marked: see blank.blank_state.
    """
    import torch

    from lora_export.checkpoint.tensors import torch_dtype

    stored = checkpoint.tensors()
    places = names.places(stored) if names else {}
    whole = {n: FileRows(r) for n, r in stored.items() if n not in places or places[n].is_whole}
    sources: dict[str, RowSource] = {**whole}
    for name, place in places.items():
        if place.obstacle:
            return StandIns({}, {}, f"transformers converts {name} by {place.obstacle}")
    stacked = {n: p for n, p in places.items() if not p.is_whole}
    for own in dict.fromkeys(place.name for place in stacked.values()):
        members = {n: p for n, p in stacked.items() if p.name == own}
        stack = _stack(members, stored)
        if stack is not None:  # a gap leaves the stack a missing key, which is refused
            sources[own] = stack
    state = {}
    for name, rows in sources.items():
        kind = torch_dtype(stored[name].spec.dtype) if name in stored else torch.float32
        state[name] = blank_tensor(
            rows.shape, getattr(torch, dtype) if kind.is_floating_point else kind
        )
        if name in marked:
            state[name].view(-1)[0] = 1
    return StandIns(state, sources)


def _stack(members: Mapping[str, Place], stored: Mapping[str, TensorRef]) -> StackedRows | None:
    """Return the stack of experts that is stored one by one; None where one is missing."""
    at = {(place.expert, place.part[0]): name for name, place in members.items()}
    parts = next(iter(members.values())).part[1]
    experts = 1 + max(place.expert or 0 for place in members.values())
    grid = [[at.get((expert, part)) for part in range(parts)] for expert in range(experts)]
    if any(name is None for row in grid for name in row):
        return None
    rows = [tuple(FileRows(stored[name]) for name in row if name) for row in grid]
    return StackedRows(tuple(JoinedRows(parts) for parts in rows))


def sources_by_name(
    model: nn.Module, made: StandIns, own: Mapping[str, str | None]
) -> tuple[dict[str, RowSource], list[str]]:
    """Find where each tensor of a loaded model comes from, by the memory of its stand-in.

    transformers keeps some tensors in float32 whatever the model's dtype is, which gives them
    memory of their own. They are found by name.

    own: the model's name of each stored tensor, as far as known.

    Returns:
        the rows by the model's names, and the names that hold none of the stand-ins.
    """
    by_memory = {_address(tensor): name for name, tensor in made.state.items() if tensor.numel()}
    by_name = {name: stored for stored, name in own.items() if name and stored in made.sources}
    found: dict[str, RowSource] = {}
    unknown = []
    for name, tensor in model.state_dict().items():
        stored = by_memory.get(_address(tensor))
        if stored is None and name in by_name and _is_cast(tensor, made.state[by_name[name]]):
            stored = by_name[name]
        if stored is None or tuple(tensor.shape) != made.sources[stored].shape:
            unknown.append(name)
        else:
            found[name] = made.sources[stored]
    return found, unknown


def _is_cast(tensor: Tensor, stand_in: Tensor) -> bool:
    """Return whether a tensor may be the stand-in in another floating dtype."""
    floating = tensor.is_floating_point() and stand_in.is_floating_point()
    return floating and tensor.dtype != stand_in.dtype and tensor.shape == stand_in.shape


def _address(tensor: Any) -> int:
    return int(tensor.data_ptr())
