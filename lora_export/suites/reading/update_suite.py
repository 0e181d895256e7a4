"""Write what was found into the goldens of a suite: digests, errors and sizes.

Only the values change: comments, order and layout of the suite stay. Each new text is parsed and
compared before it replaces the file, so that an edit in the wrong place is never written.
"""

from __future__ import annotations

import copy
import math
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.errors import StorageError, UsageError
from lora_export.suites.reading.expected_keys import size_of
from lora_export.suites.running.goldens import digested, golden_text
from lora_export.suites.running.judge import worst_error
from lora_export.toml_file import read_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from lora_export.report.result import Report
    from lora_export.suites.running.content_key import Digests
    from lora_export.suites.suite import Asked

_VALUE = r'(?:"[^"\n]*"|\'[^\'\n]*\'|[-+0-9A-Za-z_.]+)'


def update_goldens(asked: Asked, report: Report, digests: Digests) -> Asked:
    """Write the digests of a proven row, and those of its bounds that it exceeds.

    A golden of digests is always written. `max_error` and `size_below` are raised where the result
    exceeds them, to two digits above what was found, and never lowered. `exit` and `cause` are
    decisions, and no results: they stay.

    Returns:
        The row with what it expects now.

    Raises:
        UsageError: the place of a value is not found in the suite.
        InputError: a golden of digests is damaged.
        StorageError: a file cannot be written.
    """
    expect = asked.case.expect
    if expect.sha256 is None and expect.max_error is None and expect.size_below is None:
        return asked
    files = digested(asked, report, digests)
    if expect.sha256 is not None:
        replace_file(expect.sha256, golden_text(asked, expect.sha256, files))
    suite = Path(asked.case.where.rpartition(":")[0])
    error, size = worst_error(report), sum(file.size for file in files.values())
    if expect.max_error is not None and error is not None and not error <= expect.max_error:
        bound = max(_above(error), _written(suite, asked.case.place, "max_error"))
        expect = replace(expect, max_error=bound)
        _set(suite, asked.case.place, "max_error", bound)
    if expect.size_below is not None and size >= expect.size_below:
        written = _written(suite, asked.case.place, "size_below")
        above = written if size < size_of(written) else _size_above(size)
        expect = replace(expect, size_below=size_of(above))
        _set(suite, asked.case.place, "size_below", above)
    return replace(asked, case=replace(asked.case, expect=expect))


def _written(suite: Path, case: int, key: str) -> Any:
    """Return a bound as the suite has it now: another row of the case may have raised it."""
    return read_toml(suite).content["case"][case]["expect"][key]


def _above(error: float) -> float:
    """Return the next number of two digits above an error."""
    if not math.isfinite(error):
        raise UsageError(
            f"the outputs' error is {error}", hint="no golden can hold it", cause="usage/suite"
        )
    digits = 1 - math.floor(math.log10(error))
    return float(f"{math.ceil(error * 10**digits) / 10**digits:.1e}")


def _size_above(size: int) -> str:
    """Return a size above `size` bytes, in the unit that suits it."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            return f"{math.floor(size / unit * 10 + 1) / 10:g}{name}"
    return str(size + 1)


def _set(path: Path, case: int, key: str, value: object) -> None:
    """Set one value of a case's `expect`.

    Raises:
        UsageError: the value is not found where the key is.
    """
    file = read_toml(path)
    text = path.read_bytes().decode("utf-8")
    wanted: Any = copy.deepcopy(dict(file.content))
    wanted["case"][case]["expect"][key] = value
    written = f'"{value}"' if isinstance(value, str) else repr(value)
    line = file.lines["case", case, "expect", key]
    begun = sum(map(len, text.splitlines(keepends=True)[: line - 1]))
    for found in re.finditer(rf"(\b{key}[\"']?\s*=\s*){_VALUE}", text[begun:]):
        new = text[:begun] + text[begun:][: found.start()] + found[1] + written
        new += text[begun:][found.end() :]
        if _content(new) == wanted:
            return replace_file(path, new)
    raise UsageError(f"{key} could not be found to be written", where=f"{path}:{line}",
                     hint=f"write {key} = {written}", cause="usage/suite")  # fmt: skip


def _content(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the system refuses.
    """
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives a file to its owner alone; a golden has the rights of the file it replaces.
        Path(part).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(part).replace(path)
    except OSError as error:
        raise StorageError(
            error.strerror or str(error), where=str(path), cause="storage/refused"
        ) from error
    finally:
        if part:
            Path(part).unlink(missing_ok=True)
