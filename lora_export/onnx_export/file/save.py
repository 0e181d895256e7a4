"""A graph and its weights as a file: the same model of any size gives the same bytes.

The weights go from where they are into the file block by block. There is never a second copy.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lora_export.errors import OutputError, StorageError
from lora_export.onnx_export.file import external, wire
from lora_export.onnx_export.file.bindings import place_weights
from lora_export.onnx_export.file.topology import ONNX_DOMAINS
from lora_export.onnx_export.settings import DATA_NAME
from lora_export.records import WrittenFile
from lora_export.report.stopwatch import Seen, unseen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    import onnx

    from lora_export.onnx_export.file.bindings import Placed
    from lora_export.onnx_export.file.weight_blocks import Made, Weight
    from lora_export.report.stopwatch import Advance

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
    made: Mapping[str, Made] | None = None,
    external_threshold: int = GIBIBYTE,
    data_name: str = DATA_NAME,
    progress: Advance = unseen,
) -> tuple[WrittenFile, ...]:
    """Write the graph with its weights to `path`, which must not exist yet.

    Args:
        graph: as captured: bound initializers hold no data. It is not changed.
        path: the `.onnx` file, in a staging folder.
        weights: parameter or buffer name -> value, of the parameter's own shape and of the
            initializer's dtype; every bound name. Tied names may all be given.
        made: values of initializers that are no parameter, by initializer.
        external_threshold: bytes of all tensors from which they go into a file of their own beside
            it.
        data_name: of that file, with the {stem} of `path` and 8 hex digits of its SHA-256 as
            {digest}.
        progress: called with the bytes of weights that were written, and with those in all.

    Returns:
        the files written, paths relative to `path`'s folder, the model first.

    Raises:
        FitError: the weights do not fit the graph, see bindings.place_weights; nothing is written.
        InputError: the graph has no usable bindings.
        OutputError: a file of that name exists.
        StorageError: the system refused to write.
    """
    placed = place_weights(graph, weights, made)
    size = sum(one.size for one in placed.values())
    seen = Seen(progress, size)
    try:
        if size < min(external_threshold, MESSAGE_LIMIT):
            return (_write(path, graph, placed, {}, seen),)
        places, data = _write_data(path, data_name, placed, seen)
        return (_write(path, graph, placed, places, seen), data)
    except FileExistsError as error:
        raise OutputError(
            "exists already", where=str(error.filename), cause="output/exists"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror}", where=str(path), cause="storage/refused"
        ) from error


def written_size(
    graph: onnx.ModelProto,
    path: Path,
    weights: Mapping[str, Weight],
    *,
    external_threshold: int = GIBIBYTE,
    data_name: str = DATA_NAME,
) -> int:
    """Return the bytes of the files that `save_model` would write; no weight is read.

    Raises:
        FitError, InputError: as for `save_model`.
    """
    placed, data, model = place_weights(graph, weights), _Counter(), _Counter()
    places: dict[str, onnx.TensorProto] = {}
    if sum(one.size for one in placed.values()) >= min(external_threshold, MESSAGE_LIMIT):
        location = _location(path, data_name, "0" * 8)
        places = _references(placed, location, _lay_out(data, placed))
    _send_model(model, graph, placed, places)
    return data.size + model.size


class _Counter:
    """A file that is not written: only its size is computed."""

    def __init__(self) -> None:
        self.size = 0

    def send(self, data: bytes | memoryview) -> None:
        self.size += len(data)

    def send_all(self, placed: Placed) -> None:
        self.size += placed.size


class _Sink(_Counter):
    """A new file; its digest and size are computed while it is written."""

    def __init__(self, file: BinaryIO, seen: Seen) -> None:
        super().__init__()
        self.file, self.digest, self.seen = file, hashlib.sha256(), seen

    def send(self, data: bytes | memoryview) -> None:
        super().send(data)
        self.file.write(data)
        self.digest.update(data)
        self.seen(len(data))

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
    seen: Seen,
) -> WrittenFile:
    with path.open("xb") as file:
        sink = _Sink(file, seen)
        _send_model(sink, model, placed, places)
    return sink.written(path.name)


def _send_model(
    sink: _Counter,
    model: onnx.ModelProto,
    placed: Mapping[str, Placed],
    places: Mapping[str, onnx.TensorProto],
) -> None:
    """Write the model: the tensors in `places` as these references, the others with their data.

    The bytes are those of protobuf's own deterministic serialiser: fields in order of their number.
    """
    graph_head, graph_tail = wire.around(model.graph, "initializer")
    head, tail = wire.around(model, "graph")
    tensors = [_Tensor(places.get(name), one) for name, one in placed.items()]
    length = len(graph_head) + sum(one.size for one in tensors) + len(graph_tail)
    sink.send(head + wire.field_head(wire.number(type(model), "graph"), length) + graph_head)
    for tensor in tensors:
        tensor.send(sink)
    sink.send(graph_tail + tail)


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

    def send(self, sink: _Counter) -> None:
        sink.send(self.head)
        if self.weight is not None:
            sink.send_all(self.weight)


def _write_data(
    path: Path, name: str, placed: Mapping[str, Placed], seen: Seen
) -> tuple[dict[str, onnx.TensorProto], WrittenFile]:
    """Write the weights' file; return (references by initializer, the file).

    The file may be named after its digest, which is known at its end.
    """
    temporary = path.with_name(f"{path.stem}.onnx.data.part")
    with temporary.open("xb") as file:
        sink = _Sink(file, seen)
        offsets = _lay_out(sink, placed)
    location = _location(path, name, sink.digest.hexdigest()[:8])
    temporary.rename(path.with_name(location))
    return _references(placed, location, offsets), sink.written(location)


def _location(path: Path, name: str, digest: str) -> str:
    return name.format(stem=path.stem, digest=digest)


def _lay_out(sink: _Counter, placed: Mapping[str, Placed]) -> dict[str, int]:
    """Write the tensors that are not small, each from a page on; return their offsets."""
    offsets: dict[str, int] = {}
    for name, one in placed.items():
        if one.size >= MINIMUM:
            sink.send(b"\0" * (-sink.size % ALIGNMENT))
            offsets[name] = sink.size
            sink.send_all(one)
    return offsets


def _references(
    placed: Mapping[str, Placed], location: str, offsets: Mapping[str, int]
) -> dict[str, onnx.TensorProto]:
    return {
        name: external.refer(_bare(placed[name].slot), location, offset, placed[name].size)
        for name, offset in offsets.items()
    }


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
