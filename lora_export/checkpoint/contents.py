"""Compare what tensors hold without torch, so that planning stays light.

Only a tensor that is not dense row-major (as torch pickles may store a transposed weight) needs
torch to be put in order first.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES, iter_chunks
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_export.records import TensorRef


def is_zero(ref: TensorRef) -> bool:
    """Every element of a float tensor is zero; the sign of a negative zero does not count."""
    width = DTYPE_BITS[ref.spec.dtype] // 8
    for piece in iter_chunks(ref):
        data = bytes(piece)
        signs = data[width - 1 :: width].replace(b"\x80", b"\x00")
        lanes = [data[lane::width] for lane in range(width - 1)]
        if any(lane.strip(b"\x00") for lane in [*lanes, signs]):
            return False
    return True


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
