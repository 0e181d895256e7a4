"""The merged model before its weights were rounded.

A tensor that has no place in the model, or another value there, is an error: what is not filled
would be compared with its rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.errors import FitError
from lora_export.execution.casting import holds_source
from lora_export.execution.rows import read_rows
from lora_export.records import FLOAT_DTYPES, HALF_DTYPES
from lora_export.verification.unrounded.adapted_weight import adapted_weight
from lora_export.verification.unrounded.unrounded_rows import StreamedChanges
from lora_export.verification.unrounded.unrounded_tensor import UnroundedTensor, is_rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.records import MergePlan, Step, TensorRef

_ELEMENTS = 1 << 22
"""Elements that are filled at once."""


def is_narrowed(step: Step) -> bool:
    """Return whether a tensor without an update is written in half precision from another dtype."""
    source, out = step.source.spec.dtype, step.out.dtype
    return not step.deltas and out in HALF_DTYPES and source in FLOAT_DTYPES - {out}


def has_rounding(plan: MergePlan) -> bool:
    """Return whether any tensor of the result was rounded to half precision."""
    return any(is_rounded(step) or is_narrowed(step) for step in plan.steps())


def wider_sources(subject: Subject) -> dict[str, TensorRef]:
    """Return the source of every tensor that is stored as its rounding, by the base's name.

    A stored tensor that is no rounding of its source is left out, and keeps its error.
    """
    stored = subject.merged.tensors()
    return {
        step.out.name: step.source
        for step in filter(is_narrowed, subject.plan.steps())
        if holds_source(step, stored[step.out.name])
    }


def fill_unrounded(model: nn.Module, subject: Subject) -> None:
    """Give a merged float32 model the weights that the merge had before it rounded them, in place.

    Raises:
        FitError: a merged tensor has no place in the model, or other values there.
        InputError, StorageError: a file is damaged or cannot be read.
    """
    streamed = StreamedChanges()
    for weight, start, tensor in unrounded_places(model, subject):
        if not streamed.take(weight, tensor):
            _fill(weight, start, tensor)
    streamed.apply(model)


def unrounded_places(
    model: nn.Module, subject: Subject
) -> Iterator[tuple[torch.Tensor, int, UnroundedTensor]]:
    """Find the parameter of every rounded tensor; its values are not looked at.

    Yields:
        The parameter, the first row of the tensor in the matrix of all its rows, and the tensor. A
        parameter comes more than once where the base stores it in parts.

    Raises:
        FitError: the model lacks a module, or two names of one parameter have different values.
        UsageError: the model lacks a module.
    """
    stored = subject.merged.tensors()
    found: dict[tuple[int, int], TensorRef] = {}
    for step in filter(is_rounded, subject.plan.steps()):
        delta, ref = step.deltas[0], stored[step.out.name]
        weight = adapted_weight(subject.source, model, delta)
        before = found.setdefault((id(weight), delta.start), ref)
        if before is ref:
            yield weight, delta.start, UnroundedTensor(step, subject.plan.recipe, ref)
        elif not same_content(before, ref):  # names of one parameter, as tied tables have
            message = f"differs from {before.spec.name}, with which it shares one parameter"
            raise FitError(message, where=step.out.name, cause="fit/other-model")


def _fill(weight: torch.Tensor, start: int, tensor: UnroundedTensor) -> None:
    """Fill the rows of one stored tensor, in the matrix that holds all rows of the parameter.

    start: the row at which the stored tensor begins there.
    """
    import torch

    rows, columns = tensor.matrix
    whole = weight.detach()
    matrix = whole.reshape(-1, columns)  # a view, unless the parameter is strided
    size = max(1, _ELEMENTS // columns)
    for first in range(0, rows, size):
        stop = min(first + size, rows)
        place = matrix[start + first : start + stop]
        held = read_rows(tensor.step, first, stop, tensor.stored)
        if place.shape != held.shape or not torch.equal(place, held.to(place.dtype)):
            message = "the model does not hold the stored values where the update belongs"
            raise FitError(message, where=tensor.step.out.name, cause="fit/other-model")
        place.copy_(tensor.rows(first, stop))
    if matrix.data_ptr() != whole.data_ptr():
        whole.copy_(matrix.view(whole.shape))
