"""An assembler of pickles, and of the archives and the row of pickles that torch.save writes."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

from hostile.tensors_file import BIAS, NORM, WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAGIC = 0x1950A86A20F9469CFC6C


def name(module: str, attribute: str) -> bytes:
    """Return the opcode that pushes a class or a function."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def row(*items: bytes) -> bytes:
    """Return a tuple."""
    return b"(" + b"".join(items) + b"t"


def mapping(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + b"R"


def storage(key: object, count: int, kind: str = "FloatStorage", *further: bytes) -> bytes:
    """Return the persistent id of a storage; `further`: the view of the old format."""
    module, _, last = kind.rpartition(".")
    facts = (name(module or "torch", last), text(str(key)), text("cpu"), number(count))
    return row(text("storage"), *facts, *further) + b"Q"


def tensor(
    stored: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0, *more: bytes
) -> bytes:
    """Return the call that rebuilds a tensor; `more`: its metadata."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        stored,
        number(offset),
        row(*map(number, shape)),
        row(*map(number, strides)),
        b"\x89",
        call(name("collections", "OrderedDict")),
        *more,
    )


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def state_dict(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    return pickled(mapping((text(key), value) for key, value in pairs))


GOOD = (
    ("fc.weight", tensor(storage(0, 48), (8, 6), (6, 1))),
    ("fc.bias", tensor(storage(1, 8), (8,), (1,))),
    ("norm.weight", tensor(storage(2, 6), (6,), (1,))),
)
"""The tensors of the base."""

STORAGES = {"0": WEIGHT, "1": BIAS, "2": NORM}


def archive(
    content: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    prefix: str = "archive/",
    order: bytes = b"little",
    method: int = zipfile.ZIP_STORED,
    version: bool = True,
    extra: Iterable[tuple[str, bytes]] = (),
) -> bytes:
    """Return the zip archive of torch.save around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr(f"{prefix}data.pkl", content)
        made.writestr(f"{prefix}byteorder", order)
        for key, value in (STORAGES if storages is None else storages).items():
            made.writestr(f"{prefix}data/{key}", value)
        if version:
            made.writestr(f"{prefix}version", b"3\n")
        for path, value in extra:
            made.writestr(path, value)
    return file.getvalue()


def saved(pairs: Iterable[tuple[str, bytes]], **settings: object) -> bytes:
    """Return the archive of a state dict."""
    return archive(state_dict(pairs), **settings)


OLD = tuple(
    (key, tensor(storage(place, count, "FloatStorage", b"N"), shape, strides))
    for place, (key, count, shape, strides) in enumerate(
        [
            ("fc.weight", 48, (8, 6), (6, 1)),
            ("fc.bias", 8, (8,), (1,)),
            ("norm.weight", 6, (6,), (1,)),
        ]
    )
)
"""The same tensors in the format before torch 1.6."""

BLOBS = ((48, WEIGHT), (8, BIAS), (6, NORM))
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def old_format(
    pairs: Iterable[tuple[str, bytes]] = OLD,
    keys: Sequence[str] = ("0", "1", "2"),
    blobs: Iterable[tuple[int, bytes]] = BLOBS,
    system: bytes = SYSTEM,
) -> bytes:
    """Return a file of torch.save before torch 1.6."""
    start = pickled(number(MAGIC)) + pickled(number(1001)) + system
    body = start + state_dict(pairs) + pickle.dumps(list(keys), 2)
    return body + b"".join(struct.pack("<q", count) + data for count, data in blobs)
