"""The table from a module's parameters to a graph's initializers, carried inside the ONNX file.

By it new weights are put into a captured graph without tracing again, and a saved file can say
which of its numbers is which parameter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_export.errors import FitError, InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor

KEY = "lora_export.bindings"
VERSION = 1

Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a parameter lies in the graph.

    initializer: its name. perm: the permutation of the axes by which the parameter was transposed,
    empty for the identity. kind: what the module calls it.
    """

    initializer: str
    perm: tuple[int, ...] = ()
    kind: Kind = "parameter"

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The initializer's value for a parameter's value: same dtype, dense."""
        import numpy as np

        # ascontiguousarray would give a scalar one dimension.
        return np.asarray(array.transpose(self.perm) if self.perm else array, order="C")


@dataclass(frozen=True, slots=True)
class Bindings:
    """All bindings of a graph.

    parameters: parameter or buffer name -> binding; tied names share an initializer.
    unused: parameters and buffers of the module that no output depends on.
    constants: other initializers, which the model's code holds and no weight changes.
    """

    parameters: Mapping[str, Binding]
    unused: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


def write_bindings(model: onnx.ModelProto, bindings: Bindings) -> None:
    """Store the table in the model's metadata, replacing an older one."""
    table = {
        "version": VERSION,
        "parameters": {
            name: {
                "initializer": one.initializer,
                "transform": "transpose" if one.perm else "identity",
                "kind": one.kind,
                **({"perm": list(one.perm)} if one.perm else {}),
            }
            for name, one in bindings.parameters.items()
        },
        "unused": sorted(bindings.unused),
        "constants": sorted(bindings.constants),
    }
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=KEY, value=text)


def read_bindings(model: onnx.ModelProto) -> Bindings:
    """The table stored in the model's metadata.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        raise InputError(
            f"the ONNX model has no {KEY} in its metadata",
            hint="only files written by lora-export say which initializer is which parameter",
        )
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{KEY} in the ONNX metadata is damaged: {error!r}") from error


def _parse(table: Mapping[str, Any]) -> Bindings:
    if table["version"] != VERSION:
        raise ValueError(f"version {table['version']}, known is {VERSION}")
    return Bindings(
        {name: _binding(entry) for name, entry in table["parameters"].items()},
        tuple(map(str, table["unused"])),
        tuple(map(str, table["constants"])),
    )


def _binding(entry: Mapping[str, Any]) -> Binding:
    if entry["transform"] not in {"identity", "transpose"}:
        raise ValueError(f"unknown transform {entry['transform']!r}")
    perm = tuple(int(axis) for axis in entry.get("perm", ()))
    if sorted(perm) != list(range(len(perm))) or bool(perm) != (entry["transform"] != "identity"):
        raise ValueError(f"no permutation: {perm}")
    if entry["kind"] not in {"parameter", "buffer"}:
        raise ValueError(f"unknown kind {entry['kind']!r}")
    return Binding(str(entry["initializer"]), perm, entry["kind"])


def apply_weights(model: onnx.ModelProto, tensors: Mapping[str, Tensor | NDArray[Any]]) -> None:
    """Put new values into the graph, in place; initializers not named keep theirs.

    Args:
        model: a captured model with its initializers in memory.
        tensors: parameter or buffer name -> value, of the parameter's own shape and of the
            initializer's dtype. Names in `read_bindings(model).unused` have no place in the graph.

    Raises:
        FitError: a name has no binding, a shape or dtype differs, or two names that share one
            initializer (tied) are given different values. All faults are told at once, and then
            nothing has been changed.
        InputError: the model has no usable bindings.
    """
    bindings = read_bindings(model)
    slots = {tensor.name: tensor for tensor in model.graph.initializer}
    ready: dict[str, bytes] = {}
    problems = []
    for name, tensor in tensors.items():
        found = _prepare(bindings, slots, name, tensor)
        if isinstance(found, Problem):
            problems.append(found)
        elif ready.setdefault(found[0], found[1]) != found[1]:
            hint = "untie the model before it is captured"
            problems.append(Problem("differs from the tensor it is tied to", name, hint))
    if problems:
        raise FitError.of(problems)
    for initializer, data in ready.items():
        _store(slots[initializer], data)


def _prepare(
    bindings: Bindings,
    slots: Mapping[str, onnx.TensorProto],
    name: str,
    tensor: Tensor | NDArray[Any],
) -> tuple[str, bytes] | Problem:
    """The initializer of a parameter and its new bytes, or why there are none."""
    binding = bindings.parameters.get(name)
    if name in bindings.unused:
        return Problem(
            "is a weight of the model that no output of the graph depends on",
            name,
            "export an output that uses it, or leave it out",
        )
    if binding is None or binding.initializer not in slots:
        return Problem("is bound to no initializer of the graph", name)
    array, slot = as_array(tensor), slots[binding.initializer]
    value = binding.apply(array) if len(binding.perm) in {0, array.ndim} else array
    if value.shape != tuple(slot.dims) or value.dtype != element_dtype(slot):
        return Problem(
            f"is {array.dtype}{list(array.shape)}, the graph holds {element_dtype(slot)}"
            f"{list(slot.dims)} in {binding.initializer!r}",
            name,
        )
    return binding.initializer, value.tobytes()


def _store(slot: onnx.TensorProto, data: bytes) -> None:
    name, kind, dims = slot.name, slot.data_type, list(slot.dims)
    slot.Clear()
    slot.name, slot.data_type, slot.raw_data = name, kind, data
    slot.dims.extend(dims)


def element_dtype(tensor: onnx.TensorProto) -> np.dtype[Any]:
    """The numpy dtype of an initializer's elements (ml_dtypes' for bfloat16)."""
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(tensor.data_type)


def as_array(tensor: Tensor | NDArray[Any]) -> NDArray[Any]:
    """A dense array of the same bits; bfloat16 becomes ml_dtypes' bfloat16."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return np.asarray(tensor, order="C")
    import torch

    dense = tensor.detach().cpu().contiguous()
    if dense.dtype is not torch.bfloat16:
        return np.asarray(dense.numpy())
    import ml_dtypes

    return np.asarray(dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
