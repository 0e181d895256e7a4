"""Writes an ONNX model so that the same model gives the same bytes, whatever its size."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lora_export.errors import OutputError, StorageError
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

GIBIBYTE = 1 << 30
# protobuf refuses messages from 2 GiB on; the graph itself needs room too.
MESSAGE_LIMIT = (2 << 30) - (64 << 20)
# Pages, so that runtimes can map a tensor; below the minimum a reference costs more than it saves.
ALIGNMENT = 4096
MINIMUM = 1024


def save_model(
    model: onnx.ModelProto, path: Path, *, external_threshold: int = GIBIBYTE
) -> tuple[WrittenFile, ...]:
    """Write the model to `path`, which must not exist yet; the model is not changed.

    Args:
        model: with all weights in memory.
        path: the `.onnx` file, in a staging folder.
        external_threshold: bytes of weights from which they go into a file of their own beside
            it, called `<stem>-<8 hex digits of its SHA-256>.onnx.data`.

    Returns:
        the files written, paths relative to `path`'s folder, the model first.

    Raises:
        OutputError: a file of that name exists.
        StorageError: the system refused to write.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    try:
        if size < min(external_threshold, MESSAGE_LIMIT):
            return (_write(path, model),)
        light, data = _write_data(model, path)
        return (_write(path, light), data)
    except FileExistsError as error:
        raise OutputError("exists already", where=str(error.filename)) from error
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(path)) from error


def _write(path: Path, model: onnx.ModelProto) -> WrittenFile:
    data = model.SerializeToString(deterministic=True)
    with path.open("xb") as file:
        file.write(data)
    return WrittenFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def _write_data(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, WrittenFile]:
    """Write the weights' file and return the model without them, pointing there."""
    temporary = path.with_name(f"{path.stem}.onnx.data.part")
    digest, position = hashlib.sha256(), 0
    places: dict[str, tuple[int, int]] = {}
    with temporary.open("xb") as file:
        for tensor in _large(model):
            data = tensor.raw_data
            gap = b"\0" * (-position % ALIGNMENT)
            for piece in (gap, data):
                file.write(piece)
                digest.update(piece)
            places[tensor.name] = (position + len(gap), len(data))
            position += len(gap) + len(data)
    name = f"{path.stem}-{digest.hexdigest()[:8]}.onnx.data"
    temporary.rename(path.with_name(name))
    return _pointing(model, name, places), WrittenFile(name, digest.hexdigest(), position)


def _large(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= MINIMUM)


def _pointing(
    model: onnx.ModelProto, location: str, places: dict[str, tuple[int, int]]
) -> onnx.ModelProto:
    """A copy of the model whose tensors in `places` lie in the file `location`.

    Built field by field: a plain copy would hold all weights a second time.
    """
    import onnx

    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(light.graph, field.name, value)
    for tensor in model.graph.initializer:
        new = light.graph.initializer.add()
        if tensor.name not in places:
            new.CopyFrom(tensor)
            continue
        new.name, new.data_type = tensor.name, tensor.data_type
        new.dims.extend(tensor.dims)
        new.data_location = onnx.TensorProto.EXTERNAL
        offset, length = places[tensor.name]
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            new.external_data.add(key=key, value=str(value))
    return light


def _copy_field(target: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    if isinstance(value, (int, float, str, bytes)):
        setattr(target, name, value)
    else:
        getattr(target, name).MergeFrom(value)
