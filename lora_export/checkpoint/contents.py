"""Reads and compares the values of tensors without torch, so that planning stays light.

One case needs torch: a tensor that is not dense row-major. torch pickles may store a transposed
weight that way.
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
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lora_export.records import TensorRef

LOOK_BYTES = 1 << 16
"""Bytes that a test for zeros reads at a time. The first piece nearly always holds a value."""

_SCALARS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
    "U8": "<B", "U16": "<H", "U32": "<I", "U64": "<Q",
}  # fmt: skip
"""The `struct` format of every dtype that Python can read as one number."""


def scalar_value(ref: TensorRef) -> float:
    """Return the value of a tensor of one element.

    Raises:
        InputError: the dtype holds no plain number (BOOL, complex, float8), or the file ends early.
        StorageError: the file cannot be read.
    """
    data = b"".join(bytes(piece) for piece in iter_chunks(ref))
    if ref.spec.dtype == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if ref.spec.dtype not in _SCALARS:
        where = f"{ref.file}: {ref.spec.name}"
        raise InputError(
            f"is stored as {ref.spec.dtype}, not a number", where=where, cause="input/factors"
        )
    return float(struct.unpack(_SCALARS[ref.spec.dtype], data)[0])


def is_zero(ref: TensorRef) -> bool:
    """Return whether every element of a float tensor is zero. Negative zeros count as zeros."""
    return all(_is_zero(bytes(piece), ref) for piece in iter_chunks(ref, size=LOOK_BYTES))


def _is_zero(data: bytes, ref: TensorRef) -> bool:
    # Little-endian: the last byte of an element holds the sign, 0x80 alone of a negative zero.
    width = DTYPE_BITS[ref.spec.dtype] // 8
    signs = data[width - 1 :: width].replace(b"\x80", b"\x00")
    return not signs.strip(b"\x00") and not any(
        data[lane::width].strip(b"\x00") for lane in range(width - 1)
    )


def same_content(left: TensorRef, right: TensorRef) -> bool:
    """Return whether both tensors have the same dtype, shape and bytes in row-major order."""
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
    """Return the SHA-256 of names, dtypes, shapes and row-major bytes, in hexadecimal.

    The order of the tensors and the format of the file do not change it.
    """
    sha = hashlib.sha256()
    for ref in sorted(refs, key=lambda ref: ref.spec.name):
        spec = ref.spec
        sha.update(json.dumps([spec.name, spec.dtype, spec.shape]).encode())
        sha.update(_digest(ref))
    return sha.hexdigest()


def file_sha256(path: Path, seen: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal.

    seen: called with the size in bytes of every piece.

    Raises:
        StorageError: the file cannot be read.
    """
    with system_errors(path, "read"), path.open("rb") as file:
        sha = hashlib.sha256()
        while data := file.read(CHUNK_BYTES):
            sha.update(data)
            seen(len(data))
        return sha.hexdigest()


def same_first_rows(copy: TensorRef, base: TensorRef) -> Literal["same", "rounded", ""]:
    """Compare the first rows of `copy` and `base`, as many as both have.

    The dtypes must be floats, and all sizes but the first must be equal.

    Returns:
        "same": the rows are equal in the base's dtype.
        "rounded": the copy has a narrower dtype and holds the base's rows rounded to it.
        "": the rows differ.
    """
    rows = min([*copy.spec.shape[:1], *base.spec.shape[:1]], default=1)
    copy, base = first_rows(copy, rows), first_rows(base, rows)
    if copy.spec.dtype == base.spec.dtype:
        return "same" if same_content(copy, base) else ""
    if rounds_to(copy, base):
        return "same"
    return "rounded" if rounds_to(base, copy) else ""


def first_rows(ref: TensorRef, rows: int) -> TensorRef:
    """Return a ref to the first `rows` rows of a tensor; a scalar stays as it is."""
    sizes = ref.spec.shape
    if not sizes or rows == sizes[0]:
        return ref
    spec = replace(ref.spec, shape=(rows, *sizes[1:]))
    # The rows of a strided tensor may lie anywhere in its byte range, so all of it stays.
    length = ref.length if ref.strides is not None else spec.nbytes
    return replace(ref, spec=spec, length=length)
