"""Whether a model fits into memory, so that the proof as a model never exhausts a machine.

Free memory is too low a figure: it leaves out the page cache, which the system gives back. Linux
reports the available memory in /proc/meminfo. A control group (a container, a batch job) may allow
less.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.records import Checkpoint

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Of a control group: the files of its limit and of its use, in bytes; then the entry of
memory.stat for the cache that the system gives back first. One row for each version of them."""


IN_MEMORY = 512 << 20
"""The most bytes that a model may take to be loaded whole; a larger one is read while it runs."""

STREAMED = 640 << 20
"""Bytes that a model takes which is read while it runs, beside its activations and the adapter."""


def elements_of(checkpoint: Checkpoint) -> int:
    """Return the number of elements of all tensors."""
    return sum(ref.spec.elements for ref in checkpoint.tensors().values())


def whole_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes that a checkpoint's model takes in a proof if it is loaded whole.

    16 bytes an element are needed: 8 for the float64 weights, and room for the float32 weights that
    lie beside them while they load.
    """
    return 16 * elements_of(checkpoint)


def is_large(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint's model is read while it runs, and not loaded whole."""
    return whole_bytes(checkpoint) > IN_MEMORY


def proof_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes that a proof as a model takes, beside its activations and the adapter."""
    return min(whole_bytes(checkpoint), STREAMED)


def why_too_large(checkpoint: Checkpoint, *, whole: bool = False) -> str:
    """Return why a checkpoint's model does not fit into memory; empty where it does.

    It is empty as well where the available memory is not known.

    whole: the model cannot be read while it runs.
    """
    needed = whole_bytes(checkpoint) if whole else proof_bytes(checkpoint)
    available = available_memory()
    if available is None or needed <= available:
        return ""
    return (
        f"running the model needs about {needed / 2**30:.1f} GB of memory, "
        f"{available / 2**30:.1f} GB are available"
    )


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may take before the system swaps or ends a process.

    This is the least of MemAvailable and of what each control group above this process leaves.

    Args:
        root: where /proc and /sys are found.

    Returns:
        Bytes; None where the system reports none of these figures.
    """
    found = _AVAILABLE.search(_text(root / "proc/meminfo"))
    machine = [1024 * int(found[1])] if found else []
    return min([*machine, *_left_by_groups(root)], default=None)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group of this process leaves, of both versions."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield from _left_along(mount, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _left_along(mount / "memory", path, _V1)


def _left_along(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Yield the bytes that are left in a group and in every group above it.

    Each group has a limit of its own, and all of them apply. In a container, the path may be the
    host's: then only the mount itself exists.
    """
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        left = _left_in(folder, *names)
        if left is not None:
            yield left
        if folder == mount:
            return


def _left_in(group: Path, most: str, now: str, cache: str) -> int | None:
    """Return the bytes that a group leaves; None for a group without a limit."""
    limit, used = _text(group / most).strip(), _text(group / now).strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    given_back = _numbers(group / "memory.stat").get(cache, 0)
    return max(int(limit) - int(used) + given_back, 0)


def _numbers(file: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {name: int(value) for name, value in pairs if value.isdecimal()}


def _text(file: Path) -> str:
    """Return a file's text; empty where it does not exist or may not be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
