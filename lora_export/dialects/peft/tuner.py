"""What every tuner of PEFT is: which keys are its factors, and what its configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Problem, TensorRef, Update

    Modules = Mapping[str, Mapping[str, TensorRef]]


def nothing_refused(_: PeftConfig) -> list[Problem]:
    """Whatever the configuration says can be merged."""
    return []


def nothing_told(_: Modules) -> list[str]:
    """Every module that is read is updated."""
    return []


@dataclass(frozen=True, slots=True)
class Tuner:
    """One peft_type that can be merged.

    stems: the components of keys that are factors. read: (config, factors by module and by stem,
    or stem.bias) -> updates and every problem; each factor is used once. refusals: what of a
    configuration cannot be merged, with the reason. notes: what the user must be told of modules
    that are read and yet not updated.
    """

    peft_type: str
    stems: frozenset[str]
    read: Callable[[PeftConfig, Modules], tuple[list[Update], list[Problem]]]
    refusals: Callable[[PeftConfig], list[Problem]]
    notes: Callable[[Modules], list[str]] = nothing_told
