"""Passes of earlier runs on disk: a row whose content has passed is not run again.

Only a pass is kept. An entry holds what the run had found, and its name is the digest of all that
decides the row. An entry is data: nothing in it is run, and no path in it is written to. Who can
write into the folder can make a row pass, so a folder or entry of another user, or one that others
may write, is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_export.errors import LoraExportError
from lora_export.records import Check, WrittenFile
from lora_export.report.result import Report
from lora_export.report.verdict import Verdict

VARIABLE = "LORA_EXPORT_PARITY_CACHE"
MAGIC = "lora-export pass 2"
SUFFIX = ".pass"
ENTRIES = 1024
MOST = 4 << 20
"""Bytes of an entry; a longer one is not read."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What a row had found when it passed."""

    report: Report
    """Without the plan."""
    verdict: Verdict
    seconds: float
    """How long the run took."""


def default_folder() -> Path | None:
    """Return $LORA_EXPORT_PARITY_CACHE, else lora-export/parity among the user's caches.

    None for a user without a home.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):  # a user without a home
        return caches.expanduser() / "lora-export" / "parity"
    return None


@dataclass(frozen=True, slots=True)
class Passes:
    """A folder of passes, one file each, named by its key."""

    folder: Path

    def take(self, key: str) -> Pass | None:
        """Return the pass kept under `key`.

        None where there is none, or where it is damaged or not the user's own.
        """
        path = self._path(key)
        try:
            if not (_is_own(self.folder) and _is_own(path)) or path.stat().st_size > MOST:
                return None
            head, _, payload = path.read_text(encoding="utf-8").partition("\n")
            if head != _head(key, payload):
                return None
            found = _pass(json.loads(payload))
        except (OSError, LoraExportError, ValueError, TypeError, KeyError, RecursionError):
            return None
        with suppress(OSError):
            path.touch()  # entries are removed in the order of their last use
        return found

    def keep(self, key: str, found: Pass) -> None:
        """Keep a pass, whole or not at all; a folder that takes none is no error."""
        with suppress(OSError, LoraExportError):
            payload = json.dumps(
                {
                    "report": {
                        "command": found.report.command,
                        "checks": [asdict(check) for check in found.report.checks],
                        "files": [asdict(file) for file in found.report.files],
                        "warnings": list(found.report.warnings),
                        "unproven": dict(found.report.unproven),
                    },
                    "verdict": asdict(found.verdict),
                    "seconds": found.seconds,
                }
            )
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(suffix=".part", dir=self.folder)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(f"{_head(key, payload)}\n{payload}")
                Path(part).replace(self._path(key))
            finally:
                Path(part).unlink(missing_ok=True)
            self._prune()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _prune(self) -> None:
        entries = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-ENTRIES]:
            path.unlink(missing_ok=True)


def _head(key: str, payload: str) -> str:
    return f"{MAGIC} {hashlib.sha256(f'{key}{payload}'.encode()).hexdigest()}"


def _is_own(path: Path) -> bool:
    """Return whether the path is the user's, and nobody else may write it."""
    found = path.stat()
    own = found.st_uid == os.geteuid() if hasattr(os, "geteuid") else True
    return own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _pass(entry: Any) -> Pass:
    """Return the pass of a parsed entry.

    Raises:
        ValueError, TypeError, KeyError: it is not what `keep` writes, or it is no pass.
    """
    report = entry["report"]
    found = Report(
        report["command"],
        checks=tuple(Check(**check) for check in report["checks"]),
        files=tuple(WrittenFile(**file) for file in report["files"]),
        warnings=tuple(report["warnings"]),
        unproven=report["unproven"],
    )
    verdict = Verdict(**entry["verdict"])
    if found.passed is not True or verdict.word not in ("PROVED", "UNCHANGED"):
        message = "no pass"
        raise ValueError(message)
    return Pass(found, verdict, float(entry["seconds"]))
