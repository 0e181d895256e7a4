"""A graph and its weights as a file: the same model of any size gives the same bytes.

The weights go from where they are into the file block by block. There is never a second copy.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lora_export.errors import OutputError, StorageError
from lora_export.onnx_export.file import wire
from lora_export.onnx_export.file.bindings import place_weights
from lora_export.onnx_export.file.topology import ONNX_DOMAINS
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    import onnx

    from lora_export.onnx_export.file.bindings import Placed
    from lora_export.onnx_export.file.weight_blocks import Weight

GIBIBYTE = 1 << 30
"""In bytes."""
MESSAGE_LIMIT = (2 << 30) - (64 << 20)
"""Bytes of weights in one message. protobuf refuses 2 GiB, and the graph itself needs room too."""
ALIGNMENT = 4096
"""Bytes of a page: runtimes map a tensor into memory where it begins on one."""
MINIMUM = 1024
"""Bytes below which a tensor stays in the graph: a reference costs more than it saves."""


def save_model(
    graph: onnx.ModelProto,
    path: Path,
    weights: Mapping[str, Weight],
    *,
    external_threshold: int = GIBIBYTE,
) -> tuple[WrittenFile, ...]:
    """Write the graph with its weights to `path`, which must not exist yet.

    Args:
        graph: as captured: bound initializers hold no data. It is not changed.
        path: the `.onnx` file, in a staging folder.
        weights: parameter or buffer name -> value, of the parameter's own shape and of the
            initializer's dtype; every bound name. Tied names may all be given.
        external_threshold: bytes of all tensors from which they go into a file of their own beside
            it, named `<stem>-<8 hex digits of its SHA-256>.onnx.data`.

    Returns:
        the files written, paths relative to `path`'s folder, the model first.

    Raises:
        FitError: the weights do not fit the graph, see bindings.place_weights; nothing is written.
        InputError: the graph has no usable bindings.
        OutputError: a file of that name exists.
        StorageError: the system refused to write.
    """
    placed = place_weights(graph, weights)
    size = sum(one.size for one in placed.values())
    try:
        if size < min(external_threshold, MESSAGE_LIMIT):
            return (_write(path, graph, placed, {}),)
        places, data = _write_data(path, placed)
        return (_write(path, graph, placed, places), data)
    except FileExistsError as error:
        raise OutputError("exists already", where=str(error.filename)) from error
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(path)) from error


class _Sink:
    """A new file; its digest and size are computed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def send(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def send_all(self, placed: Placed) -> None:
        """Write the data of a tensor, of exactly its size: references behind it count on that."""
        start = self.size
        for block in placed.blocks():
            self.send(block.data)
        if self.size - start != placed.size:
            raise AssertionError(placed.slot.name, self.size - start, placed.size)

    def written(self, name: str) -> WrittenFile:
        return WrittenFile(name, self.digest.hexdigest(), self.size)


def _write(
    path: Path,
    model: onnx.ModelProto,
    placed: Mapping[str, Placed],
    places: Mapping[str, onnx.TensorProto],
) -> WrittenFile:
    """Write the model: the tensors in `places` as these references, the others with their data.

    The bytes are those of protobuf's own deterministic serialiser: fields in order of their number.
    """
    graph_head, graph_tail = wire.around(model.graph, "initializer")
    head, tail = wire.around(model, "graph")
    tensors = [_Tensor(places.get(name), one) for name, one in placed.items()]
    length = len(graph_head) + sum(one.size for one in tensors) + len(graph_tail)
    with path.open("xb") as file:
        sink = _Sink(file)
        sink.send(head + wire.field_head(wire.number(type(model), "graph"), length) + graph_head)
        for tensor in tensors:
            tensor.send(sink)
        sink.send(graph_tail + tail)
    return sink.written(path.name)


class _Tensor:
    """An initializer as a field of the graph; the data of a weight is read when it is written."""

    def __init__(self, reference: onnx.TensorProto | None, placed: Placed) -> None:
        import onnx

        self.weight = placed if reference is None and placed.tensor is not None else None
        if self.weight is None:
            head = (reference or placed.slot).SerializeToString(deterministic=True)
        else:
            raw = wire.number(onnx.TensorProto, "raw_data")
            head = _bare(placed.slot).SerializeToString(deterministic=True)
            head += wire.field_head(raw, placed.size)
        # The length stands before the tensor, and so its size is needed before its data.
        inner = len(head) + (placed.size if self.weight else 0)
        self.head = wire.field_head(wire.number(onnx.GraphProto, "initializer"), inner) + head
        self.size = len(self.head) - len(head) + inner

    def send(self, sink: _Sink) -> None:
        sink.send(self.head)
        if self.weight is not None:
            sink.send_all(self.weight)


def _write_data(
    path: Path, placed: Mapping[str, Placed]
) -> tuple[dict[str, onnx.TensorProto], WrittenFile]:
    """Write the weights' file; return (references by initializer, the file).

    The file is named after its digest, which is known at its end.
    """
    temporary = path.with_name(f"{path.stem}.onnx.data.part")
    offsets: dict[str, int] = {}
    with temporary.open("xb") as file:
        sink = _Sink(file)
        for name, one in placed.items():
            if one.size >= MINIMUM:
                sink.send(b"\0" * (-sink.size % ALIGNMENT))
                offsets[name] = sink.size
                sink.send_all(one)
    location = f"{path.stem}-{sink.digest.hexdigest()[:8]}.onnx.data"
    temporary.rename(path.with_name(location))
    references = {n: _reference(placed[n], location, offset) for n, offset in offsets.items()}
    return references, sink.written(location)


def _reference(placed: Placed, location: str, offset: int) -> onnx.TensorProto:
    new = _bare(placed.slot)
    new.data_location = new.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", placed.size)):
        new.external_data.add(key=key, value=str(value))
    return new


def _bare(slot: onnx.TensorProto) -> onnx.TensorProto:
    """Copy name, dtype and shape of an initializer."""
    import onnx

    return onnx.TensorProto(name=slot.name, data_type=slot.data_type, dims=slot.dims)


def written_opset(path: Path) -> int:
    """Read back the operator set that a written file declares; its weights are passed over.

    Raises:
        ValueError, google.protobuf.message.DecodeError: the file is no ONNX model.
    """
    import onnx

    with path.open("rb") as file:
        return opset_of(wire.without(file, onnx.ModelProto, "graph"))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set that a model declares; 0 where it has none."""
    return next((one.version for one in model.opset_import if one.domain in ONNX_DOMAINS), 0)
