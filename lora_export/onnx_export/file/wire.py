"""The part of protobuf's wire format by which a model is written around its weights.

protobuf's own serialiser needs the whole message in memory, and makes a second copy of it. A
message is a row of fields, each with a tag and, where it has one, its length. The weights are
written one after another, between the bytes that protobuf makes of all other fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    import onnx
    from google.protobuf.message import Message  # type: ignore[import-untyped]

    Known = TypeVar("Known", onnx.ModelProto, onnx.GraphProto, onnx.TensorProto)

SHORT = 4096
"""The most bytes of an initializer that `without_data` reads."""

_LENGTH_DELIMITED = 2  # the wire type of messages, strings and bytes
_FIXED = {1: 8, 5: 4}  # wire types of numbers of fixed size, and that size in bytes
_MORE = 0x80  # the bit of a number's byte that is set where another byte follows


def number(kind: type[Message], field: str) -> int:
    """Return the number of a field by its name."""
    return int(kind.DESCRIPTOR.fields_by_name[field].number)


def field_head(field: int, length: int) -> bytes:
    """Return tag and length of a field that holds `length` bytes."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def around(message: Known, field: str) -> tuple[bytes, bytes]:
    """Return the bytes of the message's fields before `field` and after it, in protobuf's order."""
    at = number(type(message), field)
    before, after = type(message)(), type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.number != at:
            part = before if descriptor.number < at else after
            _copy_field(part, descriptor.name, value)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _copy_field(target: Message, name: str, value: object) -> None:
    if isinstance(value, (int, float, str, bytes)):
        setattr(target, name, value)
    else:
        getattr(target, name).MergeFrom(value)


def without(file: BinaryIO, kind: type[Known], field: str) -> Known:
    """Read the message in `file` without `field`, which is passed over and not read.

    Raises:
        ValueError: the file ends inside a field, or holds what protobuf does not write.
        google.protobuf.message.DecodeError: the rest is no such message.
    """
    skipped, kept = number(kind, field), bytearray()
    for one in _fields(file, 0, file.seek(0, 2)):
        if one.number != skipped:
            kept += _read(file, one.start, one.end)
    message = kind()
    message.ParseFromString(bytes(kept))
    return message


def check_fields(file: BinaryIO) -> None:
    """Pass over the fields of the message in `file`; their contents are not read.

    Raises:
        ValueError: the file ends inside a field, or holds what protobuf does not write.
    """
    for one in _fields(file, 0, file.seek(0, 2)):
        if one.number == 0:
            raise ValueError("a field without a number")


def without_data(file: BinaryIO) -> onnx.ModelProto:
    """Read the model in `file` without the initializers that hold more than a few values.

    References to external data are kept: they are short.

    Raises:
        ValueError, google.protobuf.message.DecodeError: as for `without`.
    """
    import onnx

    model = without(file, onnx.ModelProto, "graph")
    at, inner = number(onnx.ModelProto, "graph"), number(onnx.GraphProto, "initializer")
    kept = bytearray()
    for graph in _fields(file, 0, file.seek(0, 2)):
        if graph.number == at:
            for one in _fields(file, graph.body, graph.end):
                if one.number != inner or one.end - one.start <= SHORT:
                    kept += _read(file, one.start, one.end)
    model.graph.ParseFromString(bytes(kept))
    return model


class _Field(NamedTuple):
    """Where a field lies in a file, in bytes: its tag, what follows tag and length, its end."""

    number: int
    start: int
    body: int
    end: int


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message at these bytes.

    Raises:
        ValueError: the message ends inside a field, or holds what protobuf does not write.
    """
    while start < end:
        file.seek(start)
        tag = _read_varint(file)
        size = _size(file, tag & 7)
        body = file.tell()
        if body + size > end:
            raise ValueError(f"the field at byte {start} ends behind the end of the file")
        yield _Field(tag >> 3, start, body, body + size)
        start = body + size


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _size(file: BinaryIO, wire_type: int) -> int:
    """Return the bytes from here to the end of a field whose tag was read last."""
    if wire_type == _LENGTH_DELIMITED:
        return _read_varint(file)
    if wire_type in _FIXED:
        return _FIXED[wire_type]
    if wire_type == 0:
        start = file.tell()
        _read_varint(file)
        size = file.tell() - start
        file.seek(start)
        return size
    raise ValueError(f"wire type {wire_type}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _MORE:
        out.append(value % _MORE | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):  # ten bytes of seven bits hold any number of 64 bits
        byte = file.read(1)
        if not byte:
            break
        value |= byte[0] % _MORE << shift
        if byte[0] < _MORE:
            return value
    raise ValueError("a number without an end")
