"""The parts of a dialect: a name, a graded recogniser and a reader."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.records import Adapter, AdapterFile


class Evidence(IntEnum):
    """How strongly a file shows its dialect; the strongest wins, a tie is an error."""

    NONE = 0
    TENSOR_NAMES = 1
    """Names that adapters of several trainers have."""
    TRAINERS_NAMES = 2
    """Names that only one trainer gives."""
    CONFIG = 3
    """A config that names the library."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of writing adapter files."""

    name: str
    """The name for --dialect."""
    recognizes: Callable[[AdapterFile], Evidence]
    """Grades the evidence in a file."""
    read: Callable[[AdapterFile, float], Adapter]
    """Reads (file, weight) into an Adapter that uses every tensor of the file exactly once.

    Raises InputError with all problems.
    """
