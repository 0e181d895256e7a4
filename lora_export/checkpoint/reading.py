"""Reads and refusals shared by all containers: exact positioned reads, system errors by name.

No file is mapped into memory. A file that is cut short under a mapping kills the process by SIGBUS;
under pread it gives an error message.
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

from lora_export.checkpoint.limits import JSON, JsonBounds, bound_json, is_too_deep
from lora_export.errors import InputError, StorageError
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lora_export.records import Problem

LFS_START = b"version https://git-lfs"
"""The first bytes of a git-lfs pointer."""

ZIP_START = b"PK\x03\x04"
"""The first bytes of a zip archive, the format of torch.save since torch 1.6."""

PICKLE_START = b"\x80"
"""The first byte of a pickle of protocol 2 or later, the format of torch.save before torch 1.6."""

COPY_AGAIN = "copy or download the file again"
"""What to do about a damaged file."""

FLOAT_TAG = "__float__"
"""The only key of an object in config.json that stands for a number JSON cannot express."""

_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_ONE_READ = 1 << 30
"""Bytes of one system call; Linux reads at most 2 GiB in one."""


@contextmanager
def system_errors(path: Path, action: str, needed: int | None = None) -> Iterator[None]:
    """Turn every OSError inside the block into a StorageError that names `path` and `action`.

    needed: bytes that the action was to write; the message names them when the disk is full.

    Raises:
        InputError: a name that a file gave is too long to be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and action == "read":
            raise _no_such_name(path, "its name is too long for any file") from error
        reason = error.strerror or str(error)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT} and needed is not None
        hint = f"{needed:,} bytes are needed there" if full else ""
        raise StorageError(
            f"cannot {action}: {reason}", where=str(path), hint=hint, cause="storage/refused"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes Python raise inside the block into our errors.

    It is the seam of all reading. A name with half of a surrogate pair or a NUL (ValueError), a
    structure nested too deep (RecursionError) and a number that no float or index holds
    (OverflowError) are faults of the input, not of the program.

    Raises:
        InputError: as above, and for a name that is too long.
        StorageError: the system refuses to read.
    """
    try:
        with system_errors(path, "read"):
            yield
    except UnicodeEncodeError as error:
        raise _no_such_name(path, "a name that is not valid Unicode") from error
    except RecursionError as error:
        text = "cannot be read: it is nested too deep"
        raise InputError(text, where=str(path), hint=COPY_AGAIN, cause="input/json") from error
    except (ValueError, OverflowError) as error:
        text = f"cannot be read: {reason_of(error)[:120]}"
        raise InputError(text, where=str(path), hint=COPY_AGAIN, cause="input/json") from error


def _no_such_name(path: Path, reason: str) -> InputError:
    """Return the refusal of a name that no file can have."""
    shown = path.name if len(path.name) <= 120 else f"{path.name[:80]}...{path.name[-20:]}"
    name = shown.encode("utf-8", "backslashreplace").decode()
    hint = "the file that names it is damaged: copy or download it again"
    message = f"no such file: {reason}"
    return InputError(message, where=name, hint=hint, cause="input/missing-file")


@contextmanager
def open_for_reading(path: Path) -> Iterator[int]:
    """Open the regular file `path` and yield its descriptor.

    Raises:
        InputError: there is no such file, or it is no regular file (a pipe would block).
        StorageError: the system refuses to open it.
    """
    with reading(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError("no such file", where=str(path), cause="input/missing-file") from error
    if not stat.S_ISREG(mode):
        raise InputError("not a regular file", where=str(path), cause="input/missing-file")
    with system_errors(path, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pread_exact(descriptor: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; fewer when the file ends before."""
    parts = []
    while length > 0:
        part = os.pread(descriptor, min(length, _ONE_READ), offset)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Fill `target` with the bytes at `offset` and return their number.

    It is smaller than the target when the file ends before.
    """
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_start(path: Path, length: int) -> bytes:
    """Read the first `length` bytes of a file; fewer when it is shorter."""
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        return pread_exact(descriptor, length, 0)


def is_lfs_pointer(start: bytes) -> bool:
    """Return whether a file that begins with `start` is a pointer of git-lfs."""
    return start.startswith(LFS_START)


def lfs_error(path: Path) -> InputError:
    """Return the refusal of a git-lfs pointer."""
    return InputError(
        "a git-lfs pointer, not the file itself",
        where=str(path),
        hint="fetch it: git lfs pull",
        cause="input/missing-file",
    )


def fail_on(problems: list[Problem]) -> None:
    """Raise one InputError that carries all `problems`, if there are any."""
    if problems:
        raise InputError.of(problems)


def read_json_object(
    path: Path, *, unique_keys: bool = False, tagged_floats: bool = False, most: JsonBounds = JSON
) -> dict[str, object]:
    """Read the JSON object in the file `path`; the keywords are those of parse_json.

    Raises:
        InputError: the file is missing, not UTF-8, broken or not an object.
        LimitError: it asks for more than the bounds allow.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, most.size + 1, 0)
    if is_lfs_pointer(content):
        raise lfs_error(path)
    return parse_json_object(
        content, str(path), unique_keys=unique_keys, tagged_floats=tagged_floats, most=most
    )


def parse_json_object(
    content: bytes,
    where: str,
    *,
    unique_keys: bool,
    tagged_floats: bool = False,
    most: JsonBounds = JSON,
    parse_int: Callable[[str], int] | None = None,
) -> dict[str, object]:
    """Parse `content` as a JSON object; the keywords are those of parse_json.

    Raises:
        InputError: `content` is broken or no object; `where` names the place.
        LimitError: it asks for more than the bounds allow.
    """
    value = parse_json(
        content,
        where,
        unique_keys=unique_keys,
        tagged_floats=tagged_floats,
        most=most,
        parse_int=parse_int,
    )
    if not isinstance(value, dict):
        raise InputError("the JSON is not an object", where=where, cause="input/json")
    return value


def parse_json(
    content: bytes,
    where: str,
    *,
    unique_keys: bool = False,
    tagged_floats: bool = False,
    most: JsonBounds = JSON,
    parse_int: Callable[[str], int] | None = None,
) -> object:
    """Parse `content` as JSON.

    Args:
        content: UTF-8 text.
        where: the place for messages.
        unique_keys: refuse an object in which a key occurs twice; readers differ about it.
        tagged_floats: read `{"__float__": "Infinity"}` as the number, as transformers 5.24 does
            in a config.json (PreTrainedConfig._decode_special_floats). Python's own `Infinity`
            and `NaN`, which older versions wrote, are always read as numbers.
        most: the bounds of size and of the number of values.
        parse_int: makes a number of the text of a whole number; raises ValueError to refuse it.

    Raises:
        InputError: the text is broken, nested too deep, or holds a key twice.
        LimitError: it asks for more than the bounds allow.
    """
    bound_json(content, where, most)
    twice: list[str] = []

    def read_object(pairs: list[tuple[str, object]]) -> object:
        mapping = dict(pairs)
        if unique_keys and len(mapping) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.extend(key for key, count in counts.items() if count > 1)
        return _untagged(mapping) if tagged_floats else mapping

    hook = read_object if unique_keys or tagged_floats else None
    try:
        value: object = json.loads(content.decode(), object_pairs_hook=hook, parse_int=parse_int)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"broken JSON: {reason_of(error)}", where=where, cause="input/json"
        ) from error
    if is_too_deep(value):
        raise InputError("broken JSON: nested too deep", where=where, cause="input/json")
    if twice:
        names = ", ".join(repr(key) for key in twice[:5])
        raise InputError(
            f"{len(twice)} duplicate keys in the JSON: {names}", where=where, cause="input/json"
        )
    return value


def _untagged(mapping: dict[str, object]) -> object:
    """Return the number that a tagged object stands for, else the object."""
    tag = mapping.get(FLOAT_TAG)
    if len(mapping) == 1 and isinstance(tag, str) and tag in _FLOATS:
        return _FLOATS[tag]
    return mapping
