"""Passes of earlier runs on disk: a row whose content has passed is not run again.

Only a pass is kept. An entry holds what the run had found, and its name is the digest of all that
decides the row. An entry is data: nothing in it is run, and no path in it is written to. Who can
write into the folder can make a row pass, so a folder or entry of another user, or one that others
may write, is not read.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.output.private_folder import cache_folder, read_private, write_private
from lora_export.errors import LoraExportError
from lora_export.records import Check, WrittenFile
from lora_export.report.result import Report
from lora_export.report.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

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
    """Return $LORA_EXPORT_PARITY_CACHE, else lora-export/parity; None without a home."""
    return cache_folder(VARIABLE, "parity")


@dataclass(frozen=True, slots=True)
class Passes:
    """A folder of passes, one file each, named by its key."""

    folder: Path

    def take(self, key: str) -> Pass | None:
        """Return the pass kept under `key`.

        None where there is none, or where it is damaged or not the user's own.
        """
        try:
            content = read_private(self.folder, self._path(key).name, MOST)
            head, _, payload = content.decode().partition("\n")
            return _pass(json.loads(payload)) if head == _head(key, payload) else None
        except (OSError, LoraExportError, ValueError, TypeError, KeyError, RecursionError):
            return None

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
            write_private(self._path(key), f"{_head(key, payload)}\n{payload}".encode())
            self._prune()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _prune(self) -> None:
        entries = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-ENTRIES]:
            path.unlink(missing_ok=True)


def _head(key: str, payload: str) -> str:
    return f"{MAGIC} {hashlib.sha256(f'{key}{payload}'.encode()).hexdigest()}"


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
