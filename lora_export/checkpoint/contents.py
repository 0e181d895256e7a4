"""Compare what tensors hold without torch, so that planning stays light.

Only a tensor that is not dense row-major (as torch pickles may store a transposed weight) needs
torch to be put in order first.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lora_export.checkpoint.reading import system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES, iter_chunks, rounds_to
from lora_export.errors import InputError
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_export.records import TensorRef

LOOK_BYTES = 1 << 16
"""Bytes that are looked at in one go: nearly always the first of them show a value."""


_SCALARS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
    "U8": "<B", "U16": "<H", "U32": "<I", "U64": "<Q",
}  # fmt: skip


def scalar_value(ref: TensorRef) -> float:
    """The value of a tensor of one element.

    Raises:
        InputError: its dtype is none of numbers.
    """
    data = b"".join(bytes(piece) for piece in iter_chunks(ref))
    if ref.spec.dtype == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if ref.spec.dtype not in _SCALARS:
        where = f"{ref.file}: {ref.spec.name}"
        raise InputError(f"is stored as {ref.spec.dtype}, not a number", where=where)
    return float(struct.unpack(_SCALARS[ref.spec.dtype], data)[0])


def is_zero(ref: TensorRef) -> bool:
    """Every element of a float tensor is zero; the sign of a negative zero does not count."""
    return all(_is_zero(bytes(piece), ref) for piece in iter_chunks(ref, size=LOOK_BYTES))


def _is_zero(data: bytes, ref: TensorRef) -> bool:
    width = DTYPE_BITS[ref.spec.dtype] // 8
    signs = data[width - 1 :: width].replace(b"\x80", b"\x00")
    return not signs.strip(b"\x00") and not any(
        data[lane::width].strip(b"\x00") for lane in range(width - 1)
    )


def same_content(left: TensorRef, right: TensorRef) -> bool:
    """Both hold the same bytes in row-major order, of the same dtype and shape."""
    a, b = left.spec, right.spec
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    here = (left.file, left.offset, left.length, left.strides)
    if here == (right.file, right.offset, right.length, right.strides):
        return True
    return _digest(left) == _digest(right)


def _digest(ref: TensorRef) -> bytes:
    sha = hashlib.sha256()
    for data in iter_chunks(ref):
        sha.update(data)
    return sha.digest()


def tensors_sha256(refs: Iterable[TensorRef]) -> str:
    """SHA-256 of names, dtypes, shapes and row-major bytes: the same in every file format."""
    sha = hashlib.sha256()
    for ref in sorted(refs, key=lambda ref: ref.spec.name):
        spec = ref.spec
        sha.update(json.dumps([spec.name, spec.dtype, spec.shape]).encode())
        sha.update(_digest(ref))
    return sha.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal.

    Raises:
        StorageError: the file cannot be read.
    """
    with system_errors(path, "read"), path.open("rb") as file:
        sha = hashlib.sha256()
        while data := file.read(CHUNK_BYTES):
            sha.update(data)
        return sha.hexdigest()


def same_first_rows(copy: TensorRef, base: TensorRef) -> Literal["same", "rounded", ""]:
    """Whether `copy` and `base` are the same in as many of their first rows as both have.

    "same": in the base's dtype they are equal. "rounded": they are the base's in the copy's own,
    narrower dtype. The dtypes are floats and all other sizes are equal.
    """
    rows = min([*copy.spec.shape[:1], *base.spec.shape[:1]], default=1)
    copy, base = first_rows(copy, rows), first_rows(base, rows)
    if copy.spec.dtype == base.spec.dtype:
        return "same" if same_content(copy, base) else ""
    if rounds_to(copy, base):
        return "same"
    return "rounded" if rounds_to(base, copy) else ""


def first_rows(ref: TensorRef, rows: int) -> TensorRef:
    """The first rows of a tensor."""
    sizes = ref.spec.shape
    if not sizes or rows == sizes[0]:
        return ref
    spec = replace(ref.spec, shape=(rows, *sizes[1:]))
    length = ref.length if ref.strides is not None else spec.nbytes
    return replace(ref, spec=spec, length=length)
