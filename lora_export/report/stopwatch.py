"""How long the stages of a command take: for the report, never for the manifest.

The manifest must be the same for the same inputs, and times never are.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage; a stage that is entered again goes on. Runs from when it is made."""

    _started: float = field(default_factory=time.perf_counter)
    _stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what happens inside to `stage`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._stages[stage] = self._stages.get(stage, 0.0) + time.perf_counter() - begun

    def facts(self) -> dict[str, dict[str, float]]:
        """What a report tells: seconds by stage in the order of first entry, and in all."""
        total = time.perf_counter() - self._started
        stages = {**self._stages, "total": total}
        return {"seconds": {stage: round(seconds, 3) for stage, seconds in stages.items()}}
