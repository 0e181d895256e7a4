"""The parts of a tuner of PEFT: its factors' keys, its reader and its refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Problem, TensorRef, Update

    Modules = Mapping[str, Mapping[str, TensorRef]]


def no_refusals(_: PeftConfig) -> list[Problem]:
    """Return no problem, for a tuner all of whose configs can be merged."""
    return []


def _no_notes(_: Modules) -> list[str]:
    """Return no note, for a tuner that updates every module it reads."""
    return []


@dataclass(frozen=True, slots=True)
class Tuner:
    """One peft_type that can be merged."""

    peft_type: str
    stems: frozenset[str]
    """The components of keys that mark factors."""
    read: Callable[[PeftConfig, Modules], tuple[list[Update], list[Problem]]]
    """Reads (config, factors by module and by stem or stem.bias) into updates and all problems.

    Each factor is used once.
    """
    refusals: Callable[[PeftConfig], list[Problem]]
    """Returns the members of a config that cannot be merged, with the reason."""
    notes: Callable[[Modules], list[str]] = _no_notes
    """Returns warnings about modules that are read and yet not updated."""
