"""The table from a module's parameters to a graph's initializers, carried inside the ONNX file.

By it new weights are put into a captured graph without tracing again. An audit finds by it which
initializer of a saved file is which parameter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from lora_export.checkpoint.reading import COPY_AGAIN, parse_json_object
from lora_export.errors import FitError, InputError
from lora_export.onnx_export.file.weight_blocks import Made, Matrix, blocks, dtype_of, same_memory
from lora_export.records import Problem
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.file.weight_blocks import Weight

KEY = "lora_export.bindings"
"""The table's key in the model's metadata."""
VERSION = 1
"""The version of the table's form."""

Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a parameter lies in the graph."""

    initializer: str
    """The initializer's name."""
    perm: tuple[int, ...] = ()
    """The permutation of axes from the parameter to the initializer; empty for the identity."""
    kind: Kind = "parameter"
    """What the tensor is in the module."""

    @property
    def back(self) -> tuple[int, ...]:
        """Return the permutation of axes from the initializer to the parameter."""
        return tuple(sorted(range(len(self.perm)), key=self.perm.__getitem__))


@dataclass(frozen=True, slots=True)
class Bindings:
    """All bindings of a graph."""

    parameters: Mapping[str, Binding]
    """By the name of the parameter or buffer; tied names share an initializer."""
    unused: tuple[str, ...] = ()
    """Parameters and buffers of the module that no output depends on."""
    constants: tuple[str, ...] = ()
    """Other initializers: constants of the model's code, which depend on no weight."""


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
    """Read the table from the model's metadata.

    Raises:
        InputError: there is none, or it is damaged or of another version.
        LimitError: it asks for more than the bounds of JSON allow.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        raise InputError(
            f"the ONNX model has no {KEY} in its metadata",
            hint="only files written by lora-export hold the table from parameters to initializers",
            cause="input/onnx-file",
        )
    try:
        return _parse(parse_json_object(text.encode(), KEY, unique_keys=True))
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        text = f"{KEY} in the ONNX metadata is damaged: {reason_of(error)}"
        raise InputError(text[:300], hint=COPY_AGAIN, cause="input/onnx-file") from error


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


@dataclass(frozen=True, slots=True)
class Placed:
    """An initializer and the tensor that goes into it.

    The data is made when it is asked for: memory holds one block of one tensor at a time.
    """

    slot: onnx.TensorProto
    """The initializer, in most graphs without data."""
    binding: Binding
    """From the tensor to the initializer."""
    tensor: Weight | None
    """The parameter's value; None where the initializer holds its data already."""
    size: int
    """Bytes of the data."""

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the initializer's bytes in order, as uint8."""
        import numpy as np

        if self.tensor is None:
            yield np.frombuffer(_own_data(self.slot), np.uint8)
            return
        for block in blocks(self.tensor, self.binding.perm):
            yield block.reshape(-1).view(np.uint8)


def place_weights(
    graph: onnx.ModelProto, tensors: Mapping[str, Weight], made: Mapping[str, Made] | None = None
) -> dict[str, Placed]:
    """Find the tensor of every initializer, by initializer, in the graph's order.

    Args:
        graph: a captured graph, whose bound initializers may be without data.
        tensors: parameter or buffer name -> value, of the parameter's own shape and of the
            initializer's dtype. Names in `read_bindings(graph).unused` have no place in the graph.
        made: initializer -> value, of initializers that are no parameter as it is.

    Raises:
        FitError: a name has no binding, a shape or dtype differs, two names that share one
            initializer (tied) are given different values, or an initializer is left without data.
            One error carries all faults.
        InputError: the graph has tensors, and no usable bindings for them.
    """
    bindings = read_bindings(graph) if tensors or hollow(graph) else Bindings({})
    slots = {slot.name: slot for slot in graph.graph.initializer}
    placed = {
        name: Placed(slots[name], Binding(name), one, prod(one.shape) * one.dtype.itemsize)
        for name, one in (made or {}).items()
    }
    problems = []
    for name, tensor in tensors.items():
        found = _prepare(bindings, slots, name, tensor)
        if isinstance(found, Problem):
            problems.append(found)
        elif not _same_bits(placed.setdefault(found.slot.name, found), found):
            hint = "untie the model before it is captured"
            problems.append(
                Problem(
                    "differs from the tensor it is tied to", name, hint, cause="fit/graph-weight"
                )
            )
    owners = {binding.initializer: name for name, binding in bindings.parameters.items()}
    problems += [
        Problem(
            "is an initializer of the graph, and no value is given for it",
            owners.get(name, name),
            cause="fit/graph-weight",
        )
        for name in hollow(graph)
        if name not in placed and owners.get(name) not in tensors
    ]
    if problems:
        raise FitError.of(problems)
    return {
        name: placed.get(name) or Placed(slot, Binding(name), None, len(_own_data(slot)))
        for name, slot in slots.items()
    }


def matrices_of(
    model: onnx.ModelProto, weights: Mapping[str, Weight], initializers: Collection[str]
) -> dict[str, Matrix]:
    """Return the values of initializers of two axes, by the initializer's name.

    Args:
        model: a graph with bindings.
        weights: parameter or buffer name -> value.
        initializers: those that are wanted.

    Raises:
        FitError: see place_weights.
    """
    from onnx import numpy_helper

    found = {}
    for name, placed in place_weights(model, weights).items():
        if name in initializers and not isinstance(placed.tensor, Made):
            given = numpy_helper.to_array(placed.slot) if placed.tensor is None else placed.tensor
            found[name] = Matrix(given, turned=bool(placed.binding.perm))
    return found


def hollow(graph: onnx.ModelProto) -> list[str]:
    """List the initializers of which the graph holds dtype and shape, and no data."""
    described = {"name", "dims", "data_type", "doc_string", "metadata_props"}
    return [
        slot.name
        for slot in graph.graph.initializer
        if prod(slot.dims) and described.issuperset(field.name for field, _ in slot.ListFields())
    ]


def _own_data(slot: onnx.TensorProto) -> bytes:
    """Return the bytes of a tensor that lies in the graph itself."""
    from onnx import numpy_helper

    return slot.raw_data or numpy_helper.to_array(slot).tobytes()


def _same_bits(left: Placed, right: Placed) -> bool:
    import numpy as np

    if left is right or left.tensor is None or right.tensor is None:
        return left is right
    if same_memory(left.tensor, right.tensor) and left.binding.perm == right.binding.perm:
        return True
    return left.size == right.size and all(map(np.array_equal, left.blocks(), right.blocks()))


def _prepare(
    bindings: Bindings,
    slots: Mapping[str, onnx.TensorProto],
    name: str,
    tensor: Weight,
) -> Placed | Problem:
    """Pair a parameter's tensor with its initializer; return a problem where they do not fit."""
    binding = bindings.parameters.get(name)
    if name in bindings.unused:
        return Problem(
            "is a weight of the model that no output of the graph depends on",
            name,
            "export an output that uses it, or leave it out",
            cause="fit/graph-weight",
        )
    if binding is None or binding.initializer not in slots:
        return Problem("is bound to no initializer of the graph", name, cause="fit/graph-weight")
    slot, dtype, shape = slots[binding.initializer], dtype_of(tensor), tuple(tensor.shape)
    placed = shape
    if len(binding.perm) == len(shape):
        placed = tuple(shape[axis] for axis in binding.perm)
    if placed != tuple(slot.dims) or dtype != element_dtype(slot):
        return Problem(
            f"is {dtype}{list(shape)}, the graph holds {element_dtype(slot)}"
            f"{list(slot.dims)} in {binding.initializer!r}",
            name,
            cause="fit/graph-weight",
        )
    return Placed(slot, binding, tensor, prod(shape) * dtype.itemsize)


def element_dtype(tensor: onnx.TensorProto) -> np.dtype[Any]:
    """Return the numpy dtype of an initializer's elements (ml_dtypes' for bfloat16).

    Raises:
        InputError: the file names an element type that ONNX does not have.
    """
    from onnx import helper

    try:
        return helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as error:
        text = f"has elements of the unknown type {tensor.data_type}"
        raise InputError(
            text, where=tensor.name[:200], hint=COPY_AGAIN, cause="input/onnx-file"
        ) from error
