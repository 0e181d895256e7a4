"""The form that a finished file of a precision has, where a precision has had several.

Files of earlier versions stay provable: their products in blocks had no accuracy_level. And int8
has signed or unsigned codes. The values that the codes stand for are the same, and the audit checks
them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.errors import InputError
from lora_export.onnx_export.file import external
from lora_export.onnx_export.precision.grids import LEVEL

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from lora_export.onnx_export.precision.grids import Precision


def as_written(path: Path, precision: Precision) -> Precision:
    """Return the precision in the form that the file at `path` has.

    It is `precision` itself where the file cannot be read, or mixes several forms. The audit then
    reports that.
    """
    try:
        graph = external.parse(path).graph
    except InputError:
        return precision
    if precision.codes:
        return precision.with_codes(_codes(graph) or precision.codes)
    if precision.level and not _levels(graph):
        return replace(precision, level=0)
    return precision


def _codes(graph: onnx.GraphProto) -> str:
    """Return "unsigned" or "signed" where all products have such codes, else ""."""
    from onnx import TensorProto

    stored = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.name in stored}
    known = {TensorProto.UINT8: "unsigned", TensorProto.INT8: "signed"}
    return known.get(kinds.pop(), "") if len(kinds) == 1 else ""


def _levels(graph: onnx.GraphProto) -> bool:
    """Return whether a product in blocks has an accuracy_level."""
    products = (node for node in graph.node if node.op_type == "MatMulNBits")
    return any(item.name == LEVEL for node in products for item in node.attribute)
