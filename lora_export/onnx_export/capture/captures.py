"""A cache of captured graphs on disk: the graph of a base serves every adapter of it.

The key of a graph is a digest of all that decides it. Only models of Hugging Face folders are kept.
A user's factory may read the environment, files or a clock, and no key could hold that.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.private_folder import (
    cache_folder,
    private_folder,
    read_private,
    write_private,
)
from lora_export.errors import InputError, LimitError
from lora_export.onnx_export.capture.capture_form import capture_fault
from lora_export.onnx_export.file.bindings import read_bindings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from lora_export.records import InputSpec

VARIABLE = "LORA_EXPORT_CAPTURE_CACHE"
MAGIC = b"lora-export capture 1\n"
SUFFIX = ".capture"
COUNT_SUFFIX = ".count"
ENTRIES = 64
COUNTS = 16
"""Files of counts that are kept beside one graph."""
COUNT_BYTES = 24
"""Bytes of one count at most, in decimal digits and with what separates it from the next."""
ENTRY_BYTES = 128 << 20
"""Bytes of an entry at most: the graph of a network without its weights takes a few megabytes."""
ABANDONED = 3600.0
"""Seconds after which an unfinished entry counts as left by a run that was killed."""

PACKAGE = Path(__file__).parents[2]
ROOMS = ("models", "onnx_export", "verification")
"""The folders whose code decides a graph, or what is counted beside it."""

# The libraries whose versions may change a graph.
LIBRARIES = (
    "lora-export",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "timm",
)


def capture_key(
    identity: Mapping[str, object],
    inputs: Sequence[InputSpec],
    *,
    opset: int | None,
    dtype: str,
    untied: Sequence[str],
) -> str:
    """Return the SHA-256 (64 hex digits) of everything that decides a captured graph.

    identity: see models.source.ModelSource.identity. untied: parameters that were separated.
    """
    facts = {
        "model": identity,
        "inputs": [asdict(spec) for spec in inputs],
        "opset": opset,
        "dtype": dtype,
        "untied": sorted(untied),
        "versions": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "code": _own_code(),
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _own_code() -> str:
    """Return the digest of our own code that makes graphs.

    The version is not enough: while it is worked on, the code changes under one version.
    """
    digest = hashlib.sha256()
    for file in _own_files():
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _own_files() -> list[Path]:
    return [file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py"))]


def default_folder() -> Path | None:
    """Return $LORA_EXPORT_CAPTURE_CACHE, else lora-export/captures; None without a home."""
    return cache_folder(VARIABLE, "captures")


def open_captures(folder: str | Path | None, *, off: bool) -> Captures | None:
    """Return the cache in `folder`, or in the default one; None where it is off.

    Nothing is read or written yet.
    """
    found = None if off else Path(folder) if folder else default_folder()
    return Captures(found) if found else None


@dataclass(frozen=True, slots=True)
class Captures:
    """A folder of captures, one file each, named by its key."""

    folder: Path

    def take(self, key: str) -> onnx.ModelProto | None:
        """Return the graph kept under `key`.

        None where there is none that is as it was written, that only the user can have written,
        and that is as captures are: see private_folder and capture_form.
        """
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            head, payload = _split(read_private(self.folder, self._path(key).name, ENTRY_BYTES))
        except OSError:
            return None
        if head != _head(key, payload):
            return None
        graph = onnx.ModelProto()
        try:
            graph.ParseFromString(payload)
            fault = capture_fault(graph, read_bindings(graph))
        except (DecodeError, InputError, LimitError):
            return None
        return None if fault else graph

    def keep(self, key: str, graph: onnx.ModelProto) -> str:
        """Keep a graph, whole or not at all; return a warning where it could not be kept.

        It is written under another name and renamed: other runs may read the folder meanwhile.
        """
        payload = graph.SerializeToString(deterministic=True)
        if len(payload) > ENTRY_BYTES // 2 or capture_fault(graph, read_bindings(graph)):
            return ""  # it would not be taken back
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with private_folder(self.folder):
                pass
            write_private(self._path(key), _head(key, payload) + payload)
            self._prune()
        except OSError as error:
            return (
                f"the captured graph could not be kept in {self.folder}: {error.strerror or error}"
            )
        return ""

    def beside(self, key: str) -> Beside:
        """Return the place of what was counted on the network whose graph is kept under `key`."""
        return Beside(self, key)

    def take_counts(self, key: str, what: str, size: int) -> list[int] | None:
        """Return the counts kept beside the graph of `key`.

        Returns:
            `size` counts; None where none are kept, or the file is not as it was written.
        """
        try:
            head, payload = _split(
                read_private(
                    self.folder, self._count_path(key, what).name, size * COUNT_BYTES + 500
                )
            )
        except OSError:
            return None
        if head != _head(what, payload):
            return None
        return _counts_of(payload, size)

    def keep_counts(self, key: str, what: str, counts: Sequence[int]) -> None:
        """Keep counts beside the graph of `key`, where that is kept and the folder takes them."""
        payload = json.dumps(list(counts)).encode()
        if self._path(key).is_file():
            with suppress(OSError):  # they are counted again
                write_private(self._count_path(key, what), _head(what, payload) + payload)
                self._prune_counts(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _count_path(self, key: str, what: str) -> Path:
        return self.folder / f"{key}-{what}{COUNT_SUFFIX}"

    def _prune(self) -> None:
        """Remove the entries that were not used for longest, and what killed runs left.

        Counts go with the graph that they lie beside.
        """
        ages = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another run prunes as well
                ages.append((path.stat().st_mtime, path))
        entries = [path for _, path in sorted(ages) if path.suffix == SUFFIX]
        old = entries[: max(len(entries) - ENTRIES, 0)]
        past = time.time() - ABANDONED
        old += [path for age, path in ages if path.suffix == ".part" and age < past]
        kept = {path.stem for path in entries} - {path.stem for path in old}
        counts = [path for _, path in ages if path.suffix == COUNT_SUFFIX]
        old += [path for path in counts if path.stem.split("-")[0] not in kept]
        for path in old:
            path.unlink(missing_ok=True)

    def _prune_counts(self, key: str) -> None:
        """Remove the oldest counts of one graph: another alpha or weight has a file of its own."""
        files = sorted(
            self.folder.glob(f"{key}-*{COUNT_SUFFIX}"), key=lambda path: path.stat().st_mtime
        )
        for path in files[:-COUNTS]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Beside:
    """The place of what was counted on one network, beside its graph."""

    captures: Captures
    key: str
    """Of the network's graph."""

    def counts(self, what: str, size: int, count: Callable[[], list[int]]) -> list[int]:
        """Return the `size` counts kept under `what` (64 hex digits); else count, and keep them."""
        counts = self.captures.take_counts(self.key, what, size)
        if counts is None:
            counts = count()
            self.captures.keep_counts(self.key, what, counts)
        return counts


def _counts_of(payload: bytes, size: int) -> list[int] | None:
    """Return the counts in a file's payload; None where these are not `size` whole numbers."""
    if len(payload) > size * COUNT_BYTES + 2:
        return None
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or len(found) != size:
        return None
    return found if all(type(count) is int for count in found) else None


def _head(key: str, payload: bytes) -> bytes:
    """Return the head of an entry: its key, and the digest of key and graph."""
    digest = hashlib.sha256(key.encode() + payload).hexdigest()
    return MAGIC + f"{key}\n{digest}\n".encode()


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Split an entry into its head, which has a fixed size, and the graph."""
    size = len(_head("0" * 64, b""))
    return content[:size], content[size:]
