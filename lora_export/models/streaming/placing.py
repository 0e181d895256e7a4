"""Sets the weights of a model: small ones are read, large ones stay in their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils._pytree import tree_leaves

from lora_export.models.network.loralib_modules import FACTORS
from lora_export.models.streaming.row_sources import ChangedRows, elements_of
from lora_export.models.streaming.streamed_weight import StreamedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from lora_export.models.streaming.row_sources import Change, RowSource

HELD_ELEMENTS = 1 << 22
"""Elements that are read and stay in memory: of the smallest weights, as many as fit (16 MB)."""


_APART = frozenset({"_parameters", "_buffers", "_modules", "_flat_weights", "lora_ind"})
"""Attributes of modules that hold no other names of weights.

A recurrent layer makes a new list `_flat_weights` when its weights have changed. loralib reads
`lora_ind` for an update, and there is none.
"""


def place_rows(model: nn.Module, sources: Mapping[str, RowSource]) -> None:
    """Give tensors of a model, by its own names, the values of row sources.

    The smallest are read at once; a vector, a buffer and what torch's own attention hides are read
    whatever their size. All others are read while the model runs.

    Raises:
        InputError, StorageError: a file cannot be read.
    """
    held = _held(model, sources)
    state = model.state_dict(keep_vars=True)
    numbers = {name: number for number, name in enumerate(state)}
    fresh: list[tuple[Tensor, Tensor]] = []
    for name, rows in sources.items():
        old = state[name]
        if name in held:
            read = torch.empty(rows.shape, dtype=old.dtype)
            rows.fill(0, read)
            fresh.append((old, torch.nn.Parameter(read, requires_grad=False)))
        else:
            fresh.append((old, StreamedWeight(rows, old.dtype, numbers[name], old.stride())))
    replace_tensors(model, fresh)


def _held(model: nn.Module, sources: Mapping[str, RowSource]) -> set[str]:
    """Choose the tensors that are read at once."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    hidden = tuple(_hidden(model))
    must = {
        name
        for name, rows in sources.items()
        if name not in parameters or len(rows.shape) < 2 or name.startswith(hidden)
    }
    left = HELD_ELEMENTS
    for name, rows in sorted(sources.items(), key=lambda item: elements_of(item[1])):
        left -= elements_of(rows)
        if left >= 0:
            must.add(name)
    return must


def _hidden(model: nn.Module) -> Iterator[str]:
    """Yield prefixes of modules that pass their weights to compiled code, or keep them apart."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.MultiheadAttention) or hasattr(module, "parametrizations"):
            yield f"{name}."


def replace_tensors(model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put the second of each pair wherever the model has the first: at both ends of a tie.

    pairs: parameters and buffers of the model, with what takes their places.

    Raises:
        LookupError: the model does not have the first of a pair.
    """
    fresh = {id(old): new for old, new in pairs}
    placed = set()
    for module in model.modules():
        for table in (module._parameters, module._buffers):  # noqa: SLF001 - a setter would refuse other types
            for name, held in table.items():
                if id(held) in fresh:
                    table[name] = fresh[id(held)]  # type: ignore[assignment]
                    placed.add(id(held))
    if placed != fresh.keys():
        message = f"{len(fresh) - len(placed)} of the tensors to replace are not the model's"
        raise LookupError(message)


def changed(weight: StreamedWeight, change: Change, columns: int) -> StreamedWeight:
    """Return a weight whose rows are changed as they are read; see row_sources.ChangedRows."""
    return weight.like(ChangedRows(weight.rows, change, columns))


def weightless(model: nn.Module) -> list[str]:
    """Give zeros to the factors that were removed, and list the tensors that still have no values.

    loralib_modules.remove_factors leaves zeros, which are on the meta device as well.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name.rpartition(".")[2] in FACTORS:
            replace_tensors(model, [(buffer, torch.zeros_like(buffer, device="cpu"))])
    tensors = [*model.named_parameters(), *model.named_buffers(), *_aliases(model)]
    return [name for name, tensor in tensors if tensor.is_meta]


def _aliases(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that modules keep beside their parameters and buffers, in containers too.

    torch multiplies by a tensor on the meta device without an error, and gives any numbers.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _APART:
                kept = [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
                yield from ((f"{path}.{name}".lstrip("."), one) for one in kept)
