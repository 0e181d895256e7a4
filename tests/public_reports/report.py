"""One public report: where it was written, what went wrong there, and the check of it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Report:
    """A row of the table.

    repository, number: where to read it. line: what the reporter saw. shows: what is exercised
    here. check: makes its input in the folder it is given, and asserts what must come out.
    """

    repository: str
    number: int
    line: str
    shows: str
    check: Callable[[Path], None]

    @property
    def name(self) -> str:
        return f"{self.repository.partition('/')[2]}-{self.number}"
