"""The machine on which figures were taken: without it they cannot be compared."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from results import Machine

DISTRIBUTIONS = (
    "lora-export", "torch", "numpy", "safetensors", "peft", "transformers", "loralib",
)  # fmt: skip


def machine(data_lies_on: str) -> Machine:
    """Return processor, cores, memory, system, versions, and the file system of the timed runs."""
    return {
        "cpu": _found(r"model name\s*: (.+)", "/proc/cpuinfo"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": int(_found(r"MemTotal:\s+(\d+) kB", "/proc/meminfo") or 0) << 10,
        "system": f"{platform.system()} {platform.release()}",
        "file_system": data_lies_on,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
    }


def file_system(folder: Path) -> str:
    """Return the type of the file system that `folder` lies on, as /proc/mounts names it."""
    place = folder.resolve()
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    holding = [fields for fields in mounts if place.is_relative_to(fields[1])]
    return max(holding, key=lambda fields: len(fields[1]))[2] if holding else "unknown"


def _found(pattern: str, path: str) -> str:
    match = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    return match[1] if match else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
