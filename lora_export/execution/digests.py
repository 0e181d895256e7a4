"""SHA-256 of the base's files, for the manifest, without reading them once more where possible.

While torch is imported the other processor is idle and hashes the first files; the rest is hashed
from the very bytes that the merge reads; only what it does not read whole is read again.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.files import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES
from lora_export.errors import LoraExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.records import ShardPlan


class HeadStart:
    """Hashes files in a thread until `stop`; one that is not finished by then counts for naught."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Start at once, in the order of `files`."""
        self._files = files
        self._done: dict[Path, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> Mapping[Path, str]:
        """The digests so far, by file."""
        self._stopped.set()
        self._thread.join()
        return self._done

    def _run(self) -> None:
        try:
            for file in self._files:
                digest = self._hash(file)
                if digest is None:
                    return
                self._done[file] = digest
        except LoraExportError:
            return  # whoever needs the file will meet the same error, and tell it

    def _hash(self, file: Path) -> str | None:
        sha, offset = hashlib.sha256(), 0
        with open_for_reading(file) as descriptor, system_errors(file, "read"):
            while piece := pread_exact(descriptor, CHUNK_BYTES, offset):
                if self._stopped.is_set():
                    return None
                sha.update(piece)
                offset += len(piece)
        return sha.hexdigest()


def is_read_whole(shard: ShardPlan, file: Path) -> bool:
    """Whether carrying the shard out reads every byte of the base's `file`, in its order."""
    at = -1
    for step in shard.steps:
        ref = step.source
        if step.action == "add":
            continue
        if step.action == "replace" or ref.file != file or ref.strides is not None:
            return False
        if at not in (-1, ref.offset):
            return False
        at = ref.offset + ref.length
    return at == file.stat().st_size


def header_of(shard: ShardPlan, file: Path) -> bytes:
    """The bytes of a base's file before its first tensor."""
    first = min(s.source.offset for s in shard.steps if s.source.file == file)
    with open_for_reading(file) as descriptor, system_errors(file, "read"):
        return pread_exact(descriptor, first, 0)


def hash_files(files: Sequence[Path], jobs: int) -> dict[Path, str]:
    """SHA-256 of whole files, several at a time."""
    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        return dict(zip(files, pool.map(file_sha256, files), strict=True))
