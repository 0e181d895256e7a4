"""The seconds of a command's stages: for the report, never for the manifest.

The manifest must be the same for the same inputs, and times are never the same.
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
    """Counts seconds by stage, from its own making on; a stage may be entered several times."""

    #: The time of `time.perf_counter` when the stopwatch was made.
    _started: float = field(default_factory=time.perf_counter)
    #: Seconds by stage, in the order of first entry.
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
        """Return the entry of a report: seconds by stage, in order of first entry, and in all."""
        total = time.perf_counter() - self._started
        stages = {**self._stages, "total": total}
        return {"seconds": {stage: round(seconds, 3) for stage, seconds in stages.items()}}
