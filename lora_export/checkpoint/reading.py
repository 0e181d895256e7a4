"""Reads and refusals shared by all containers: exact positioned reads, system errors by name.

No mmap anywhere: a file cut short under a mapping is SIGBUS, under pread it is an error message.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_export.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_export.records import Problem

MAX_JSON_BYTES = 100_000_000
"""Upper bound of every JSON file that is parsed, the same as that of a safetensors header."""

LFS_START = b"version https://git-lfs"

FLOAT_TAG = "__float__"
"""The one key of an object that stands for a number that JSON has not, in a config.json."""

_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@contextmanager
def system_errors(path: Path, action: str, needed: int | None = None) -> Iterator[None]:
    """Turn every OSError inside the block into a StorageError that names `path` and `action`.

    needed: bytes that the action was to write, told when the disk is full.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT} and needed is not None
        hint = f"{needed:,} bytes are needed there" if full else ""
        raise StorageError(f"cannot {action}: {reason}", where=str(path), hint=hint) from error


@contextmanager
def open_for_reading(path: Path) -> Iterator[int]:
    """A file descriptor of the regular file `path`.

    Raises InputError when there is no such file or it is no regular file (a pipe would block),
    StorageError when the system refuses to open it.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("no such file", where=str(path)) from error
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(mode):
        raise InputError("not a regular file", where=str(path))
    with system_errors(path, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pread_exact(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset`; fewer when the file ends before."""
    parts = []
    while length > 0:
        part = os.pread(descriptor, min(length, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Fill `target` with the bytes at `offset`; how many there were, fewer when the file ends."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_start(path: Path, length: int) -> bytes:
    """The first `length` bytes of a file, fewer when it is shorter."""
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        return pread_exact(descriptor, length, 0)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins with `start` stands for one that git-lfs has not fetched."""
    return start.startswith(LFS_START)


def lfs_error(path: Path) -> InputError:
    """The refusal of a git-lfs pointer."""
    return InputError(
        "a git-lfs pointer, not the file itself", where=str(path), hint="fetch it: git lfs pull"
    )


def fail_on(problems: list[Problem]) -> None:
    """Raise one InputError that carries all `problems`, if there are any."""
    if problems:
        raise InputError.of(problems)


def read_json_object(
    path: Path, *, unique_keys: bool = False, tagged_floats: bool = False
) -> dict[str, object]:
    """The JSON object in the file `path`; `unique_keys`, `tagged_floats`: see parse_json.

    Raises InputError when it is missing, too large, not UTF-8, broken or not an object, and with
    `unique_keys` when a key occurs twice in any object.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, MAX_JSON_BYTES + 1, 0)
    if is_lfs_pointer(content):
        raise lfs_error(path)
    return parse_json_object(
        content, str(path), unique_keys=unique_keys, tagged_floats=tagged_floats
    )


def parse_json_object(
    content: bytes, where: str, *, unique_keys: bool, tagged_floats: bool = False
) -> dict[str, object]:
    """The JSON object that `content` is; InputError, naming `where`, when it is none."""
    value = parse_json(content, where, unique_keys=unique_keys, tagged_floats=tagged_floats)
    if not isinstance(value, dict):
        raise InputError("the JSON is not an object", where=where)
    return value


def parse_json(
    content: bytes, where: str, *, unique_keys: bool = False, tagged_floats: bool = False
) -> object:
    """The JSON value that `content` is; InputError, naming `where`, when it is broken.

    tagged_floats: `{"__float__": "Infinity"}` is the number, as in a config.json of transformers
    (5.24, PreTrainedConfig._decode_special_floats). Python's own `Infinity` and `NaN`, which older
    versions wrote, are numbers everywhere.
    """
    if len(content) > MAX_JSON_BYTES:
        raise InputError(f"JSON of more than {MAX_JSON_BYTES:,} bytes", where=where)
    twice: list[str] = []

    def read_object(pairs: list[tuple[str, object]]) -> object:
        mapping = dict(pairs)
        if unique_keys and len(mapping) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.extend(key for key, count in counts.items() if count > 1)
        return _untagged(mapping) if tagged_floats else mapping

    hook = read_object if unique_keys or tagged_floats else None
    try:
        value: object = json.loads(content.decode(), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON: {str(error) or 'nested too deep'}", where=where) from error
    if twice:
        names = ", ".join(repr(key) for key in twice[:5])
        raise InputError(f"{len(twice)} duplicate keys in the JSON: {names}", where=where)
    return value


def _untagged(mapping: dict[str, object]) -> object:
    """The number that a tagged object stands for, else the object."""
    tag = mapping.get(FLOAT_TAG)
    if len(mapping) == 1 and isinstance(tag, str) and tag in _FLOATS:
        return _FLOATS[tag]
    return mapping
