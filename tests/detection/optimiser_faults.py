"""ONNX Runtimes whose optimisation is wrong: a right file, and another graph is run in its place.

A faulty fusion has just this effect. What it can do is taken from the tables of what can be wrong
with a file; it is done from one level of optimisation on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lora_export.errors import VerificationError
from lora_export.verification.runtime.sessions import LEVELS, open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_export.verification.runtime.sessions import Optimisation


class OptimiserFault(NamedTuple):
    """A fault of a file's weights or graph ("refusal": none), and the level that brings it."""

    of: str
    level: Optimisation


OPTIMISER_FAULTS: dict[str, OptimiserFault] = {
    "a fusion with another epsilon": OptimiserFault("another epsilon", "extended"),
    "a fusion that loses a node": OptimiserFault("a node lost", "basic"),
    "a fusion with another activation": OptimiserFault("another operator", "extended"),
    "a fold of another constant": OptimiserFault("a constant 1 % larger", "basic"),
    "a rewiring": OptimiserFault("an input taken from elsewhere", "all"),
    "weights packed in bf16": OptimiserFault("through bf16", "all"),
    "a kernel that is not there": OptimiserFault("refusal", "extended"),
}


def wrong_from(level: Optimisation, wrong: Path) -> Callable[..., Any]:
    """An opener that opens another file from this level of optimisation on."""
    broken = LEVELS[LEVELS.index(level) :]

    def opener(path: Path, *, level: Optimisation = "all", **settings: Any) -> Any:
        return open_session(wrong if level in broken else path, level=level, **settings)

    return opener


def refusing_from(level: Optimisation, node: str) -> Callable[..., Any]:
    """An opener that has no kernel for what it made of a node."""
    broken = LEVELS[LEVELS.index(level) :]

    def opener(path: Path, *, level: Optimisation = "all", **settings: Any) -> Any:
        if level in broken:
            raise VerificationError("does not load: no kernel", where=f"{path.name}: {node}")
        return open_session(path, level=level, **settings)

    return opener
