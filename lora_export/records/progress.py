"""How far a command is: what a progress callback is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["bytes", "runs", ""]
"""What the work of a stage is counted in: bytes of files, or runs of a model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current stage of a command is."""

    #: Its name, such as "merge" or "proof as a model": a key of the report's `seconds`.
    stage: str
    #: How much of its work is done; 0 at its start.
    done: int = 0
    #: How much work it has; None where that is not known.
    total: int | None = None
    #: What both are counted in; empty where `total` is None.
    unit: Unit = ""
