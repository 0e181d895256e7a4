"""Names why a manifest does not fit the files beside it, for a report of a failed check."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import MANIFEST_NAME, files_there, weight_files
from lora_export.execution.digests import hash_files
from lora_export.records import Finding
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.records import Check


def manifest_findings(
    path: Path, recorded: Recorded, checks: Sequence[Check]
) -> tuple[Finding, ...]:
    """Return why the artefact's files are not those of its manifest; none where they are.

    Args:
        path: the artefact: a folder, or one file.
        recorded: its manifest.
        checks: those of the files and of their digests; see manifest_check.check_outputs.

    Raises:
        StorageError: a file cannot be read.
    """
    if all(check.passed for check in checks):
        return ()
    folder = path if path.is_dir() else path.parent
    there = set(files_there(folder, recorded.outputs))
    missing = [name for name in recorded.outputs if name not in there]
    moved = _moved(path, folder, recorded, missing)
    lost = [name for name in missing if name not in moved]
    weights = weight_files(path) if path.is_dir() else [path.name]
    new = [name for name in weights if name not in recorded.outputs and name not in moved.values()]
    changed = _changed(checks, len(missing))
    kept = len(recorded.outputs) - len(lost) - changed
    if kept <= 0 and (new or changed):
        message = "the manifest is of another artefact: none of its files is here unchanged"
        return (Finding("manifest-of-another", message, (recorded.path.name,)),)
    return tuple(_listed(recorded, checks, moved, lost, new))


def _listed(
    recorded: Recorded,
    checks: Sequence[Check],
    moved: dict[str, str],
    lost: Sequence[str],
    new: Sequence[str],
) -> Iterator[Finding]:
    if moved:
        name, other = next(iter(moved.items()))
        message = f"{_files(len(moved))} under another name: {other}, recorded as {name}"
        yield Finding("files-renamed", message, tuple(moved.values()))
    if number := _changed(checks, len(lost) + len(moved)):
        words = f"{number:,} of {counted(len(recorded.outputs), 'file')}"
        message = f"{words} changed after the manifest was written"
        names = [name for name in _named(checks) if name not in {*lost, *moved}]
        yield Finding("files-changed", message, tuple(names))
    if lost:
        yield Finding("files-missing", f"{_files(len(lost))} missing", tuple(lost))
    if new:
        message = f"{counted(len(new), 'weight file')} that the manifest does not list"
        yield Finding("files-added", message, tuple(new))


def _changed(checks: Sequence[Check], missing: int) -> int:
    """Return how many recorded files are there with other content; the digests are known."""
    return max(0, sum(int(check.worst) for check in checks if check.name == "digests") - missing)


def _named(checks: Sequence[Check]) -> list[str]:
    """Return the first files without their digest, as the check names them."""
    wheres = [check.where for check in checks if check.name == "digests" and check.where]
    return [name for where in wheres for name in where.split(", ")]


def _moved(path: Path, folder: Path, recorded: Recorded, missing: Sequence[str]) -> dict[str, str]:
    """Return where the content of each missing file is, if it is beside the artefact or in it."""
    if not missing:
        return {}
    files = sorted(folder.rglob("*")) if path.is_dir() else [path]
    others = {
        file.relative_to(folder).as_posix(): file
        for file in files
        if file.is_file() and not file.name.endswith(MANIFEST_NAME)
    }
    free = {name: file for name, file in others.items() if name not in recorded.outputs}
    found = hash_files(list(free.values()), os.cpu_count() or 1)
    by_digest = {found[file]: name for name, file in free.items()}
    return {
        name: by_digest[digest]
        for name in missing
        if (digest := recorded.outputs[name]) in by_digest
    }


def _files(number: int) -> str:
    return f"{counted(number, 'file')} of the manifest {'is' if number == 1 else 'are'}"
