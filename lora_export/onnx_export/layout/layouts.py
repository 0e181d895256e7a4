"""Where a runtime looks for the ONNX files of a folder, and how it names what they take.

The names are those of transformers.js 4.3 (`utils/dtypes.js`, `utils/model-loader.js`) and Optimum,
and those of onnxruntime-genai 0.18. Nothing else of this program knows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_export.errors import UsageError
from lora_export.onnx_export.settings import DATA_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

_NONE: Mapping[str, str] = MappingProxyType({})

_DIMENSIONS = {
    "batch": "batch_size",
    "sequence": "sequence_length",
    "past": "past_sequence_length",
}
"""Optimum's names of dynamic dimensions. transformers.js makes an empty past by them: a batch of
another name has 0 rows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the ONNX files of an export lie, and how they are named."""

    #: As given to --layout.
    name: str
    #: The folder of the .onnx files inside the output, with a slash behind it; "" for the output.
    folder: str = ""
    #: What is behind the name of a model in a precision, for each precision that has a name.
    suffixes: Mapping[str, str] = field(default_factory=lambda: _NONE)
    #: The name of the file of external data; see onnx_export.settings.
    data_name: str = DATA_NAME
    #: The runtime's names of dynamic dimensions, by ours.
    dimensions: Mapping[str, str] = field(default_factory=lambda: _NONE)

    @property
    def is_folder(self) -> bool:
        """Return whether the output is a folder with the files that a runtime needs beside."""
        return self.name != "onnx"

    def file(self, precision: str, model: str = "model") -> str:
        """Return the path of a model's .onnx file inside the output."""
        return f"{self.folder}{model}{self.suffixes[precision]}.onnx"


LAYOUTS: Mapping[str, Layout] = {
    one.name: one
    for one in (
        Layout("onnx"),
        Layout(
            "hf",
            "onnx/",
            {
                "fp32": "",
                "fp16": "_fp16",
                "int8": "_quantized",
                "int8-weights": "_int8",
                "int4": "_q4",
            },
            "{stem}.onnx_data",
            _DIMENSIONS,
        ),
        Layout(
            "genai",
            suffixes=dict.fromkeys(("fp32", "fp16", "int8", "int8-weights", "int4"), ""),
            data_name="{stem}.onnx.data",
        ),
    )
}


def find_layout(name: str) -> Layout:
    """Find the layout of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in LAYOUTS:
        raise UsageError(
            f"there is no layout {name!r:.80}",
            where="--layout",
            hint=f"one of {', '.join(LAYOUTS)}",
            cause="usage/option-value",
        )
    return LAYOUTS[name]
