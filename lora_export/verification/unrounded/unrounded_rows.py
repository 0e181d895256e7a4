"""Weights before their rounding in a model that reads its weights while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.errors import FitError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_export.models.streaming.row_sources import RowSource
    from lora_export.models.streaming.streamed_weight import StreamedWeight
    from lora_export.verification.unrounded.unrounded_tensor import UnroundedTensor


@dataclass(slots=True)
class StreamedChanges:
    """Collects the changes of the weights of a model, each of which may come of several tensors."""

    _weights: dict[int, StreamedWeight] = field(default_factory=dict)
    """The changed weights by their identity."""
    _changes: dict[int, dict[RowSource, RowSource]] = field(default_factory=dict)
    """What takes the place of each stored tensor, by the weight's identity."""

    def take(self, weight: Tensor, tensor: UnroundedTensor) -> bool:
        """Note that rows of a weight are computed; return whether it is read while the model runs.

        Args:
            weight: the model's parameter.
            tensor: one of the tensors that its rows come from.
        """
        from lora_export.models.streaming.row_sources import ChangedRows, FileRows
        from lora_export.models.streaming.streamed_weight import StreamedWeight

        if not isinstance(weight, StreamedWeight):
            return False
        # The rows of the base are read, which another model in lockstep needs as well.
        rows = ChangedRows(FileRows(tensor.step.source), _Filling(tensor), tensor.matrix[1])
        self._weights[id(weight)] = weight
        self._changes.setdefault(id(weight), {})[FileRows(tensor.stored)] = rows
        return True

    def apply(self, model: nn.Module) -> None:
        """Put the changed weights into the model.

        Raises:
            FitError: a weight does not come of the stored tensor that belongs to its update.
        """
        from lora_export.models.streaming.placing import replace_tensors
        from lora_export.models.streaming.row_sources import sources_in, with_others

        pairs = []
        for key, weight in self._weights.items():
            changes = self._changes[key]
            for origin in changes.keys() - sources_in(weight.rows):
                message = "the model does not hold the stored values where the update belongs"
                raise FitError(message, where=origin.ref.spec.name, cause="fit/other-model")  # type: ignore[attr-defined]
            pairs.append((weight, weight.like(with_others(weight.rows, changes))))
        replace_tensors(model, pairs)


class _Filling:
    """Turns rows of the base into those of the merged tensor before its rounding."""

    def __init__(self, tensor: UnroundedTensor) -> None:
        self._tensor = tensor

    def __call__(self, first: int, rows: Tensor) -> None:
        rows.copy_(self._tensor.rows(first, first + len(rows), rows))
