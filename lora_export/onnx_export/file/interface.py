"""The interface of an ONNX file for its callers: inputs, outputs, and where it runs well."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.file import wire
from lora_export.onnx_export.file.save import opset_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import onnx

_NOTES = {
    "fp16": "made for GPUs (CUDAExecutionProvider and others): on a CPU, ONNX Runtime computes "
    "most operators in float32 and casts around them. Float inputs and outputs are float16",
    "int8": "made for CPUs; inputs and outputs are as in float32. The operators are ONNX's own; "
    "ONNX Runtime's CUDA provider hands MatMulInteger to the CPU",
    "int8-weights": "inputs and outputs are as in float32. MatMulNBits is an operator of ONNX "
    "Runtime (CPU, CUDA and others), not of ONNX: other runtimes may not know it",
}
_NOTES["int4"] = _NOTES["int8-weights"]


def interface(path: Path, precision: str) -> dict[str, Any]:
    """Read precision, opset, inputs and outputs of a file, and the operators it needs.

    Returns:
        precision, note (where there is one), opset, inputs and outputs (name, dtype, dims: numbers
        and names of dynamic dimensions), operators (the count of each kind).
    """
    with path.open("rb") as file:
        model = wire.without_data(file)
    note = {"note": _NOTES[precision]} if precision in _NOTES else {}
    return {
        "precision": precision,
        **note,
        "opset": opset_of(model),
        "inputs": list(map(_value, model.graph.input)),
        "outputs": list(map(_value, model.graph.output)),
        "operators": dict(sorted(Counter(_kinds(model.graph.node)).items())),
    }


def _kinds(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    return (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    from onnx import helper

    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return {"name": value.name, "dtype": str(dtype), "dims": dims}
