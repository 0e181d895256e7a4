"""The key of a pass: a digest of everything that decides whether a row holds."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.contents import file_sha256
from lora_export.suites.running.opened_files import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.suites.running.call import Call

_VARIABLES = (
    "ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "NVIDIA_", "OMP_",
    "ONEDNN_", "OPENBLAS_", "ORT_", "PYTORCH_", "TORCH_",
)  # fmt: skip
"""The first letters of environment variables that change arithmetic, or what is run."""

_SIDE = (".json", ".yaml", ".yml")
"""Files beside a named file that may describe it, such as adapter_config.json."""


class Digests:
    """SHA-256 of files, each read once while its size and time stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], str] = {}

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file.

        Raises:
            OSError, StorageError: it cannot be read.
        """
        found = path.stat()
        key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self._known:
            self._known[key] = file_sha256(path)
        return self._known[key]


def content_key(
    call: Call, digests: Digests, *, model: Mapping[str, str], loaded: Mapping[str, str]
) -> str:
    """Return the SHA-256 (64 hex digits) of everything known to decide a row.

    These are the verb, its options with the seed, the content of base, adapters, artefact and of
    every file that an option names, the versions of all installed packages, our own code, the
    processor, and the environment of the numeric libraries.

    model: the content of the folder of --model, by name; see model_folder.
    loaded: the digests of the user's modules that were loaded before the case, by name.

    Raises:
        OSError, StorageError: an input cannot be read.
    """
    facts = {
        "verb": call.verb,
        "name": call.name,
        "inputs": [_content(path, digests) for path in _inputs(call)],
        "options": {
            k: _option(v, digests) for k, v in sorted(call.options.items()) if k != "model"
        },
        "model": dict(model),
        "loaded": dict(loaded),
        "versions": _versions(),
        "code": _own_code(),
        "processor": _processor(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def keyed_files(call: Call) -> frozenset[Path]:
    """Return the inputs and the files that options name, with their links resolved.

    Raises:
        OSError: a folder cannot be read.
    """
    named = [value for value in call.options.values() if isinstance(value, Path)]
    files = (file for path in _inputs(call) for file in _files(path))
    return frozenset(file.resolve() for file in (*files, *named))


def _inputs(call: Call) -> list[Path]:
    return [Path(path) for path in (call.base, *call.adapters, call.artefact) if path]


def _content(path: Path, digests: Digests) -> Mapping[str, str]:
    """Return the SHA-256 of every file of an input, by its name in it."""
    return {
        str(file.relative_to(path if path.is_dir() else path.parent)): digests.of(file)
        for file in sorted(_files(path))
    }


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
        return
    yield path
    if path.suffix == ".onnx" and path.is_file():
        from lora_export.onnx_export.file.external import data_files

        yield from data_files(path)
    whole = path.name.endswith(".index.json")
    beside = (file for file in path.parent.iterdir() if whole or file.suffix in _SIDE)
    yield from (file for file in beside if file != path and file.is_file())


def _option(value: Any, digests: Digests) -> Any:
    """Return an option as JSON; of a path its content: another place makes no difference."""
    if isinstance(value, Path):
        return [digests.of(value) if value.is_file() else "no file"]
    return value


@cache
def _versions() -> Mapping[str, str]:
    """Return the version of Python and of every installed package: the user's model may use any."""
    found = {each.name: each.version for each in metadata.distributions() if each.name}
    return {**dict(sorted(found.items())), "python": sys.version}


@cache
def _own_code() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _processor() -> list[str]:
    """Return what the processor is and can do: its kernels sum in other orders."""
    lines: set[str] = set()
    if (place := Path("/proc/cpuinfo")).exists():
        text = place.read_text(encoding="utf-8", errors="replace")
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = {line for line in text.splitlines() if line.startswith(wanted)}
    return [platform.machine(), platform.processor(), str(os.cpu_count()), *sorted(lines)]
