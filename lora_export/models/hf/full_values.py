"""Stored tensors that replace those of a running model, or the part of one that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor
from lora_export.errors import FitError
from lora_export.records import Place

if TYPE_CHECKING:
    import torch

    from lora_export.models.streaming.row_sources import RowSource
    from lora_export.records import NameTable, TensorRef


def slot(names: NameTable | None, tensor: torch.Tensor, name: str, ref: TensorRef) -> torch.Tensor:
    """Return the part of a model's tensor in memory that holds a checkpoint's `name`.

    Raises:
        FitError: the part has another shape than the stored tensor.
    """
    if tensor.shape != ref.spec.shape:
        place = _place(names, name)
        number, count = place.part
        tensor = tensor if place.expert is None else tensor[place.expert].chunk(count)[number]
    if tensor.shape != ref.spec.shape:  # copy_ would repeat a smaller tensor
        raise _other_shape(name, ref, tuple(tensor.shape))
    return tensor


def with_value(
    names: NameTable | None, tensor: torch.Tensor, name: str, ref: TensorRef
) -> torch.Tensor:
    """Return a model's tensor with a stored value in the place of a checkpoint's `name`.

    A tensor in memory is changed in place.

    Raises:
        FitError: the place has another shape than the stored tensor.
        InputError, StorageError: a file cannot be read.
    """
    from lora_export.models.streaming.row_sources import FileRows, with_part
    from lora_export.models.streaming.streamed_weight import StreamedWeight

    if not isinstance(tensor, StreamedWeight):
        slot(names, tensor, name, ref).copy_(read_tensor(ref))
        return tensor
    rows: RowSource | None = FileRows(ref)
    if ref.spec.shape != tensor.rows.shape:
        place = _place(names, name)
        if place.expert is not None:
            rows = with_part(tensor.rows, (place.expert, place.part[0]), FileRows(ref))
    if rows is None or rows.shape != tensor.rows.shape:
        raise _other_shape(name, ref, tensor.rows.shape)
    return tensor.like(rows)


def _place(names: NameTable | None, name: str) -> Place:
    return names.places([name])[name] if names else Place(name)


def _other_shape(name: str, ref: TensorRef, own: tuple[int, ...]) -> FitError:
    message = f"has shape {list(ref.spec.shape)}, in the model {list(own)}"
    hint = "is the model's class the architecture of this checkpoint?"
    return FitError(message, where=name, hint=hint, cause="fit/other-model")
