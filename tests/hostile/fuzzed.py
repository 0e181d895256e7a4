"""What a run of fuzzed inputs has found."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN = 3


class Wrong(Exception):  # noqa: N818 - a finding of the suite
    """An accepted input with another result than the reference's."""


@dataclass
class Fuzzed:
    """Counts, and the first inputs that were wrong."""

    examples: int = 0
    accepted: int = 0
    beyond: int = 0
    """Accepted ones that the reference refuses, of a kind that we read on purpose."""
    wrong: int = 0
    tracebacks: int = 0
    shown: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    """Why the reference refuses them, with how many."""

    @contextmanager
    def example(self, content: object) -> Iterator[None]:
        """Count an example; `content` shows it where it is wrong."""
        self.examples += 1
        try:
            yield
        except Wrong as error:
            self.wrong += 1
            self._show(str(error), content)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.tracebacks += 1
            self._show(f"{type(error).__name__}: {error}", content)

    def refused(self, reason: str) -> None:
        """Count an accepted input that the reference refuses."""
        self.beyond += 1
        self.kinds[reason[:60]] = self.kinds.get(reason[:60], 0) + 1

    def check(self, is_right: bool, what: str) -> None:  # noqa: FBT001 - a condition, as of assert
        """Raise Wrong unless the result is right."""
        if not is_right:
            raise Wrong(what)

    def _show(self, text: str, content: object) -> None:
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{text[:200]}: {content!r:.1500}")
