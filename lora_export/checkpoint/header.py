"""A strict reader and writer of safetensors headers, on the standard library alone.

A file that two readers could understand differently (duplicate names, overlaps, holes) is refused.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, TypeGuard

from lora_export.checkpoint.limits import HEADER, NAME_PARTS, bound_tensors
from lora_export.checkpoint.reading import (
    COPY_AGAIN,
    fail_on,
    is_lfs_pointer,
    lfs_error,
    open_for_reading,
    parse_json_object,
    pread_exact,
    reading,
)
from lora_export.errors import InputError
from lora_export.records import DTYPE_BITS, Problem, TensorRef, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors' own reader accepts (0.8, MAX_HEADER_SIZE)."""

MAX_SIZE = 2**63 - 1
"""The largest size, offset or count of elements: what torch holds in a signed 64-bit integer."""

LENGTH_BYTES = 8
"""Bytes of the header's length at the start of a safetensors file, little-endian."""

METADATA_KEY = "__metadata__"
_LONG_NUMBER = re.compile(r"\d{640}")
"""A number that Python may refuse to read, at the lowest limit that it can be given."""

_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})


def read_header(path: Path) -> tuple[dict[str, str], tuple[TensorRef, ...]]:
    """Read the `__metadata__` and the tensors of a safetensors file, in the order of their data.

    Reproduces the format of safetensors 0.8: 8-byte little-endian length, JSON, data without
    holes. It is stricter: duplicate and unsafe names are refused. Offsets of the refs are absolute.

    Raises:
        InputError: the file is damaged or unsafe; every problem of the file is named.
        LimitError: its header asks for more than the size of the file explains.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, reading(path):
        size = os.fstat(descriptor).st_size
        start = pread_exact(descriptor, 64, 0)  # enough to recognise a git-lfs pointer
        length = _header_length(path, start, size)
        content = pread_exact(descriptor, length, LENGTH_BYTES)
    if not content.startswith(b"{"):
        raise InputError(
            "the safetensors header does not begin with '{'",
            where=str(path),
            cause="input/safetensors",
        )
    header = parse_json_object(
        content,
        f"{path} (safetensors header)",
        unique_keys=True,
        most=HEADER.plus(size),
        parse_int=_no_negative_zero if b"-0" in content else None,
    )
    bound_tensors(len(header), size, str(path))
    problems: list[Problem] = []
    metadata = _read_metadata(path, header.pop(METADATA_KEY, None), problems)
    data_start = LENGTH_BYTES + length
    refs = _read_entries(path, header, data_start, problems)
    _check_gapless(path, refs, (data_start, size), problems, complete=len(refs) == len(header))
    fail_on(problems)
    return metadata, tuple(refs)


def _no_negative_zero(text: str) -> int:
    """Return a whole number; refuse the -0 that Python takes for 0 and the library for a float."""
    if text == "-0":
        raise ValueError("the number -0, which is no size")
    return int(text)


def _header_length(path: Path, start: bytes, size: int) -> int:
    if is_lfs_pointer(start):
        raise lfs_error(path)
    if size < LENGTH_BYTES:
        raise InputError(
            f"a safetensors file of {size} bytes is cut short",
            where=str(path),
            cause="input/truncated",
        )
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length == 0 or length > MAX_HEADER_BYTES:
        raise InputError(
            f"not a safetensors file: a header of {length:,} bytes"
            f" (at least 2, at most {MAX_HEADER_BYTES:,})",
            where=str(path),
            cause="input/safetensors",
        )
    if LENGTH_BYTES + length > size:
        raise InputError(
            f"cut short: a header of {length:,} bytes in a file of {size:,}",
            where=str(path),
            hint=COPY_AGAIN,
            cause="input/truncated",
        )
    return length


def _read_metadata(path: Path, value: object, problems: list[Problem]) -> dict[str, str]:
    where = f"{path}: {METADATA_KEY}"
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(Problem("not a JSON object", where, cause="input/safetensors"))
        return {}
    problems.extend(
        Problem(
            f"the value of {key!r} is not a string of valid Unicode",
            where,
            cause="input/safetensors",
        )
        for key, item in value.items()
        if not isinstance(item, str) or _is_half_character(key + item)
    )
    return value


def _is_half_character(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair: JSON can spell it, UTF-8 cannot."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def name_fault(name: str) -> str:
    """Return why no tensor may bear this name, or "".

    Names end up in paths (external data of ONNX), in C strings and in JSON.
    """
    if not name:
        return "empty tensor name"
    if "\0" in name:
        return "NUL in a tensor name"
    if ".." in name.replace("\\", "/").split("/"):
        return "a tensor name like a path outside its folder"
    if _is_half_character(name):
        return "a tensor name that is not valid Unicode"
    return "the name is reserved by safetensors" if name == METADATA_KEY else _costly(name)


def _costly(name: str) -> str:
    """Return why comparing or reading a name would take too much, or ""."""
    if (parts := name.count(".") + 1) > NAME_PARTS:
        return f"a tensor name of {parts:,} parts; at most {NAME_PARTS} are read"
    return "a tensor name with a number of at least 640 digits" if _LONG_NUMBER.search(name) else ""


def _read_entries(
    path: Path, header: Mapping[str, object], data_start: int, problems: list[Problem]
) -> list[TensorRef]:
    refs = []
    for name, entry in header.items():
        fault = name_fault(name) or entry_fault(entry)
        if fault:
            problems.append(Problem(fault, f"{path}: {name!r}", cause="input/safetensors"))
            continue
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        spec = TensorSpec(name, dtype, tuple(shape))
        refs.append(TensorRef(spec, path, data_start + begin, end - begin))
    refs.sort(key=lambda ref: (ref.offset, ref.length))
    return refs


def entry_fault(entry: object) -> str:
    """Return what is wrong with one tensor's entry in the header, or ""."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        return "its entry does not hold dtype, shape and data_offsets alone"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"unknown dtype {dtype!r}"
    if not _are_sizes(shape):
        return "the shape is not a list of sizes"
    if not _are_sizes(offsets) or len(offsets) != len(("begin", "end")):
        return "data_offsets are not two positions"
    return size_fault(dtype, shape, offsets[1] - offsets[0])


def size_fault(dtype: str, shape: Iterable[int], length: int) -> str:
    """Return why a tensor of this dtype and shape cannot take `length` bytes, or ""."""
    # Checked after every factor, so that a hostile shape cannot grow a huge integer.
    elements = 1
    for size in shape:
        elements *= size
        if elements > MAX_SIZE:
            return "the shape overflows"
    size, rest = divmod(elements * DTYPE_BITS[dtype], 8)
    if rest:
        return f"{elements} elements of {dtype} do not end at a byte"
    if size != length:
        return f"{dtype} {list(shape)} takes {size:,} bytes, but {length:,} are given"
    return ""


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    # type(...) is int: True is an instance of int as well.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_SIZE for item in value
    )


def _check_gapless(
    path: Path,
    refs: Iterable[TensorRef],
    bounds: tuple[int, int],
    problems: list[Problem],
    *,
    complete: bool,
) -> None:
    """Add a problem for every overlap and hole, and one where the file ends before its data.

    An unreadable entry leaves a hole of its own. Holes and unused bytes at the end are only
    reported when every entry could be read (`complete`).
    """
    position, size = bounds
    for ref in refs:
        where = f"{path}: {ref.spec.name!r}"
        if ref.offset < position:
            problems.append(
                Problem("overlaps the tensor before it", where, cause="input/safetensors")
            )
        elif ref.offset > position and complete:
            problems.append(
                Problem(
                    f"a hole of {ref.offset - position:,} bytes before it",
                    where,
                    cause="input/safetensors",
                )
            )
        position = max(position, ref.offset + ref.length)
    if position > size:
        text = f"cut short: its tensors end at byte {position:,}, the file at {size:,}"
        problems.append(Problem(text, str(path), COPY_AGAIN, cause="input/truncated"))
    if complete and position < size:
        text = f"{size - position:,} bytes after the last tensor belong to no tensor"
        problems.append(Problem(text, str(path), cause="input/safetensors"))


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Encode the header, with its length, of a file that stores `specs` densely in this order.

    The JSON is padded with spaces to a multiple of 8, so that the data begins aligned. The bytes
    depend on nothing but the arguments.

    Raises:
        InputError: a name, dtype or size is one that no reader takes, or the header is too long.
    """
    header: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    problems: list[Problem] = []
    position = 0
    for spec in specs:
        fault = _spec_fault(spec) or ("duplicate name" if spec.name in header else "")
        if fault:
            problems.append(Problem(fault, repr(spec.name), cause="input/safetensors"))
            continue
        end = position + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]
        }  # fmt: skip
        position = end
    fail_on(problems)
    content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    if len(content) > MAX_HEADER_BYTES:
        raise InputError(
            f"a header of {len(content):,} bytes is more than any reader accepts",
            cause="input/safetensors",
        )
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def _spec_fault(spec: TensorSpec) -> str:
    if spec.dtype not in DTYPE_BITS:
        return f"unknown dtype {spec.dtype!r}"
    if not _are_sizes(list(spec.shape)):
        return "the shape is not a tuple of sizes"
    return name_fault(spec.name) or size_fault(spec.dtype, spec.shape, spec.nbytes)
