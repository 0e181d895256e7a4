"""Reads LOHA: two products, multiplied element by element (PEFT 0.21.2, tuners.loha)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.lycoris import read_lycoris
from lora_export.dialects.peft.tuner import Tuner, no_refusals

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.lycoris import Factors
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import Problem, Update

_PRODUCTS = frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})
_CORES = frozenset({"t1", "t2"})


def _missing(factors: Factors) -> set[str]:
    cores = _CORES if _CORES & factors.keys() else frozenset()
    return set((_PRODUCTS | cores) - factors.keys())


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """Read the factors; PEFT's scaling is a float32 tensor here, whatever the weight's dtype."""
    return read_lycoris(config, modules, "hada_", _missing, rule="alpha / rank in float32")


TUNER = Tuner(
    "LOHA",
    frozenset(f"hada_{stem}" for stem in _PRODUCTS | _CORES),
    _read,
    no_refusals,
)
