"""Carries together what every export and every proof is about: one merged network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.models.opening import open_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Checkpoint, MergePlan, TensorRef


@dataclass(frozen=True, slots=True)
class Subject:
    """A merged network: its code, how its weights came about, and where they lie."""

    #: Builds the network, with the weights of any checkpoint of its shape.
    source: ModelSource
    #: How every merged tensor is made of base and adapters.
    plan: MergePlan
    #: The merged weights, read back from disk.
    merged: Checkpoint

    @property
    def blueprint(self) -> Checkpoint:
        """Return the checkpoint whose configuration gives the network its shape.

        That is the base's, but where the adapter changes the shape.
        """
        return self.merged if self.plan.reshaped else self.plan.base

    def load(
        self, full: Mapping[str, TensorRef] | None = None, *, dtype: str = "float32"
    ) -> nn.Module:
        """Return the network in eval mode, with the merged weights in `dtype`.

        full: tensors, by base name, that go over the merged ones.

        Raises:
            FitError, InputError: see ModelSource.load.
        """
        untied = self.plan.separated
        return self.source.load(self.merged, full=full or {}, untied=untied, dtype=dtype)

    def open(
        self, full: Mapping[str, TensorRef] | None = None, *, dtype: str = "float32"
    ) -> nn.Module:
        """Return the network to run it, in eval mode, with the merged weights in `dtype`.

        Of a large network they are read while it runs; see opening.open_model.

        full: tensors, by base name, that go over the merged ones.

        Raises:
            FitError, InputError, UsageError: see open_model.
        """
        untied = self.plan.separated
        return open_model(self.source, self.merged, full=full or {}, untied=untied, dtype=dtype)

    def blank(self, *, dtype: str = "float32") -> nn.Module:
        """Return the network with any weights, to trace it; raises as ModelSource.blank does."""
        return self.source.blank(self.blueprint, untied=self.plan.separated, dtype=dtype)
