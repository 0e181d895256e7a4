"""Carries together what decides how an ONNX graph is captured and filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.onnx_export.capture.captures import Captures

DATA_NAME = "{stem}-{digest}.onnx.data"
"""The name of a file of external data: of the model's file without suffix, and of its content."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a network becomes an ONNX graph; two exports with equal settings have equal graphs."""

    #: ONNX operator set; None takes the exporter's own.
    opset: int | None = None
    #: Where graphs of earlier runs are kept; None captures again and keeps nothing.
    captures: Captures | None = None
    #: Of weights and floating inputs: "float32" or "float16".
    dtype: str = "float32"
    #: Whether the graph is the whole network, so that it must use every adapted weight.
    whole: bool = True
    #: The name of the file of external data, with {stem} and, where it has one, {digest}.
    data_name: str = DATA_NAME
    #: Other names for dynamic dimensions, by ours. A capture is kept with ours.
    dimensions: Mapping[str, str] = field(default_factory=dict)
