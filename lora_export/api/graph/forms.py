"""What a lowered file is made of and into: the values that its making and its proof share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.models.subject import Subject
    from lora_export.onnx_export.export import Exported
    from lora_export.onnx_export.precision.grids import Precision
    from lora_export.onnx_export.settings import ExportSettings


@dataclass(frozen=True, slots=True)
class Form:
    """How an ONNX file is made: the graph's settings, and the precision of its weights."""

    #: How the float32 graph is made.
    settings: ExportSettings
    #: The precision in which the weights are written.
    precision: Precision
    #: Whether rounding that outweighs the adapter's effect is accepted.
    allow_lossy: bool = False

    @property
    def is_lowered(self) -> bool:
        """Return whether the file is made from a float32 file that is not published."""
        return self.precision.name != "fp32"


@dataclass(frozen=True, slots=True)
class Full:
    """The float32 graph and the merged weights that a lowered file is made from."""

    job: Job
    #: The network with its base and merged weights.
    subject: Subject
    exported: Exported
    #: The float32 file, where it is published too; else one that runs the graph on the merged
    #: weights, for a proof (see onnx_export.file.linked).
    path: Path
    #: Whether the file at `path` is published.
    is_published: bool
    #: The name of a file of external data; see onnx_export.settings.
    data_name: str

    @property
    def size(self) -> int:
        """Return the bytes of the float32 file, which is not written."""
        from lora_export.onnx_export.file.save import written_size

        weights = self.exported.weights()
        return written_size(self.exported.graph, self.path, weights, data_name=self.data_name)

    def link(self) -> None:
        """Write the file at `path`.

        Raises:
            FitError: the weights do not fit the graph.
        """
        from lora_export.onnx_export.file.linked import save_linked

        stored = self.subject.merged.tensors()
        save_linked(self.exported.graph, self.path, self.exported.weights(), stored)
