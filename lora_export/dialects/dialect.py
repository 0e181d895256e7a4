"""What every dialect is: a name, a graded recogniser and a reader."""

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
    TRAINERS_NAMES = 2  # names that one trainer alone gives
    CONFIGURATION = 3


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of writing adapters down.

    recognizes: grades the evidence in a file. read: (file, weight) -> Adapter, in which every
    tensor of the file is used exactly once; raises InputError with all problems.
    """

    name: str
    recognizes: Callable[[AdapterFile], Evidence]
    read: Callable[[AdapterFile, float], Adapter]
