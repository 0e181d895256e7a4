"""External data of an ONNX file: byte ranges of other files, checked before they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.folder.side_files import is_plain_path
from lora_export.checkpoint.reading import COPY_AGAIN
from lora_export.errors import InputError
from lora_export.onnx_export.file import wire
from lora_export.onnx_export.file.bindings import element_dtype
from lora_export.records import Check
from lora_export.report.columns import counted
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

_NUMBER = re.compile("[0-9]{1,19}")

NAME = "external data"
"""The name of the check."""


@dataclass(frozen=True, slots=True)
class Range:
    """The byte range of another file that holds a tensor."""

    name: str
    """The tensor's name."""
    location: str
    """The file, relative to the model's folder."""
    offset: int
    """In bytes."""
    length: int
    """In bytes."""


def bring_in(model: onnx.ModelProto, path: Path, *, but: Container[str]) -> None:
    """Read the external tensors of the checked file `path` into `model`, in place.

    but: names of tensors that stay outside.

    Raises:
        InputError: a file has become shorter since it was checked.
    """
    for tensor in _external(model):
        if tensor.name not in but:
            data = map_array(path, tensor).tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data


def load(path: Path) -> onnx.ModelProto:
    """Load the model of the checked file `path` with all its tensors in memory."""
    model = parse(path)
    bring_in(model, path, but=())
    return model


def map_array(path: Path, tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return the values of one tensor of the checked file `path`, inside it or beside it.

    Values beside it are a read-only view of the mapped file: they take no memory of their own.

    Raises:
        InputError: the file beside it has become shorter since it was checked.
    """
    from onnx import TensorProto, numpy_helper

    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    import numpy as np

    one = _range(tensor)
    file = path.parent / one.location
    missing = one.offset + one.length - file.stat().st_size
    if missing > 0:
        raise InputError(
            f"has become {missing} bytes too short since it was checked",
            where=str(file),
            hint="let nothing else write into the folder meanwhile",
            cause="input/onnx-file",
        )
    if not one.length:
        return np.empty(tuple(tensor.dims), element_dtype(tensor))
    data = np.memmap(file, np.uint8, "r", one.offset, (one.length,))
    return np.asarray(data).view(element_dtype(tensor)).reshape(tuple(tensor.dims))


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> onnx.TensorProto:
    """Make a tensor without data refer to a byte range of a file in the model's folder; return it.

    Args:
        tensor: with dtype and shape; changed in place.
        location: the file's name.
        offset: in bytes.
        length: in bytes.
    """
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def total_size(path: Path) -> int:
    """Sum the bytes of the file and of the files that hold its external data."""
    return sum(file.stat().st_size for file in (path, *data_files(path)))


def data_files(path: Path) -> list[Path]:
    """Return the files that hold the external data of an ONNX file.

    Raises:
        InputError: the file is no ONNX model.
    """
    names = {_range(tensor).location for tensor in _external(parse(path))}
    return [path.parent / name for name in sorted(names)]


def count_check(name: str, faults: Sequence[str], right: str = "") -> Check:
    """Make a check that counts faults, each `place: what is wrong`, and shows the first three.

    right: what was found, if nothing is wrong.
    """
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return Check(
        name,
        passed=not faults,
        worst=float(len(faults)),
        tolerance=0.0,
        where=faults[0].partition(":")[0] if faults else "",
        detail=f"{'; '.join(faults[:3])}{more}" if faults else right,
    )


def check(path: Path) -> Check:
    """Check that the file parses, and that its external data lies beside it without overlaps.

    `worst` counts faults, of which the detail shows the first three.
    """
    try:
        model = parse(path)
        ranges = [_range(tensor) for tensor in _external(model)]
        wrong = list(_wrong_lengths(model))
    except InputError as error:
        problem = error.problems[0]
        return Check(NAME, passed=False, worst=1.0, tolerance=0.0,
                     where=problem.where, detail=problem.message)  # fmt: skip
    faults = [*_outside(path, ranges), *wrong, *_overlaps(ranges)]
    beside = f"{counted(len(ranges), 'tensor')} beside the file" if ranges else "none is beside it"
    return count_check(NAME, faults, beside)


def parse(path: Path) -> onnx.ModelProto:
    """Parse a file that can be run; external data is left where it is.

    Raises:
        InputError: the file is no ONNX model, or its graph has no node.
    """
    model = read_model(path)
    if not model.graph.node:
        raise InputError("holds no graph", where=str(path), cause="input/onnx-file")
    return model


def read_model(path: Path) -> onnx.ModelProto:
    """Return what the file holds, also a graph without a node; external data is not read.

    Raises:
        InputError: the file is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        with path.open("rb") as file:
            wire.check_fields(file)
        return onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        text = f"cannot be read as an ONNX file: {reason_of(error)}"
        raise InputError(
            text[:300], where=str(path), hint=COPY_AGAIN, cause="input/onnx-file"
        ) from error


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    found = all_tensors(model)
    return (tensor for tensor in found if tensor.data_location == tensor.EXTERNAL)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """List every tensor of a model, wherever the format allows one."""
    yield from model.graph.initializer
    yield from other_tensors(model)


def other_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """List every tensor of a model but the plain initializers of its main graph."""
    yield from inner_tensors(model.graph)
    for one in model.training_info:
        for graph in (one.initialization, one.algorithm):
            yield from graph.initializer
            yield from inner_tensors(graph)
    for function in model.functions:
        yield from _tensors_of(function.node)
        for attribute in function.attribute_proto:
            yield from _of_attribute(attribute)


def inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """List the tensors of a graph that are no plain initializers: sparse ones, those in nodes."""
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """List the tensors in nodes: in their attributes and in their subgraphs."""
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [*attribute.sparse_tensors]
    if attribute.HasField("sparse_tensor"):
        sparse.append(attribute.sparse_tensor)
    for one in sparse:
        yield from (one.values, one.indices)
    for inner in _graphs_of(attribute):
        yield from inner.initializer
        yield from inner_tensors(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """List the subgraphs of a node, like the branches of an If."""
    for attribute in node.attribute:
        yield from _graphs_of(attribute)


def _graphs_of(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    yield from attribute.graphs
    if attribute.HasField("g"):
        yield attribute.g


def _range(tensor: onnx.TensorProto) -> Range:
    """Read the byte range of an external tensor.

    Raises:
        InputError: an entry is missing, twice there or no number; the length is required here.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = entries.get("offset", "0"), entries.get("length", "")
    is_usable = _NUMBER.fullmatch(offset) and _NUMBER.fullmatch(length) and entries.get("location")
    if not is_usable or len(entries) != len(tensor.external_data):
        text = f"has no usable external data: {entries}"
        raise InputError(text[:300], where=tensor.name, hint=COPY_AGAIN, cause="input/onnx-file")
    return Range(tensor.name, entries["location"], int(offset), int(length))


def _outside(path: Path, ranges: Sequence[Range]) -> Iterator[str]:
    """List ranges beyond their file's end, and files that are not plain files of the folder.

    A link could make any file of the user's a weight, and the model's own file would be both. The
    readers of onnx 1.21 refuse them too.
    """
    for one in ranges:
        file = path.parent / one.location
        if "/" in one.location or not is_plain_path(one.location):
            yield f"{one.name}: lies outside the folder, in {one.location!r:.200}"
        elif one.location == path.name or file.is_symlink() or not file.is_file():
            yield f"{one.name}: {one.location!r} is no plain file beside the model"
        elif file.stat().st_nlink > 1:
            yield f"{one.name}: {one.location!r} is a hard link, a file with another name as well"
        elif one.offset + one.length > file.stat().st_size:
            yield (
                f"{one.name}: bytes {one.offset} to {one.offset + one.length} of {one.location!r}, "
                f"which has {file.stat().st_size}"
            )


def _wrong_lengths(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in _external(model):
        needed = prod(tensor.dims) * element_dtype(tensor).itemsize
        if _range(tensor).length != needed:
            yield f"{tensor.name}: has {_range(tensor).length} bytes, its shape needs {needed}"


def _overlaps(ranges: Sequence[Range]) -> Iterator[str]:
    ordered = sorted(ranges, key=lambda one: (one.location, one.offset))
    for left, right in pairwise(ordered):
        if left.location == right.location and left.offset + left.length > right.offset:
            yield f"{right.name}: overlaps {left.name}"
