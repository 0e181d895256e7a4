"""The merged weights as they are stored, for a graph that may hold them in another dtype.

transformers maps the weight files into memory, and copies a tensor only where its dtype changes. A
network that is loaded in the dtype of its files takes no memory. Its weights are then cast one
block at a time, on the way into a file or into a comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.tensors import TORCH_NAMES
from lora_export.onnx_export.file.bindings import element_dtype, read_bindings
from lora_export.onnx_export.file.weight_blocks import Cast, dtype_of
from lora_export.records import FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx
    from torch import nn

    from lora_export.onnx_export.file.weight_blocks import Weight
    from lora_export.records import Checkpoint

_MAPPED = {"F32", "F16", "BF16"}
"""Dtypes of weights in which every network can be built."""


def stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype, by torch's name, in which a network holds the weights as they are stored.

    It is float32 where the checkpoint has floating tensors of several dtypes.
    """
    found = {ref.spec.dtype for ref in checkpoint.tensors().values()} & set(FLOAT_DTYPES)
    return TORCH_NAMES[found.pop()] if len(found) == 1 and found <= _MAPPED else "float32"


def graph_dtypes(graph: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Return the dtype of every bound parameter and buffer in the graph."""
    slots = {slot.name: slot for slot in graph.graph.initializer}
    bound = read_bindings(graph).parameters
    return {
        name: element_dtype(slots[binding.initializer])
        for name, binding in bound.items()
        if binding.initializer in slots
    }


def weights_of(model: nn.Module, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Weight]:
    """Return the weights and buffers of a network, to be cast to the dtypes of a graph.

    Args:
        model: as it was loaded, in any floating dtype.
        dtypes: of the graph, by the names of the weights; others keep their own dtype.
    """
    weights: dict[str, Weight] = {}
    for name, tensor in model.state_dict().items():
        found = dtype_of(tensor)
        wanted = dtypes.get(name, found)
        floats = wanted.kind == "f" and tensor.is_floating_point()
        weights[name] = Cast(tensor, wanted) if floats and wanted != found else tensor
    return weights
