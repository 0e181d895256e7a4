"""LOKR: a Kronecker product, each side whole or decomposed (PEFT 0.21.2, tuners.lokr).

decompose_factor, decompose_both and use_effective_conv2d only choose the shapes, which the tensors
tell themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.lycoris import read_lycoris
from lora_export.dialects.peft.tuner import Tuner, nothing_refused

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.lycoris import Factors
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import Problem, Update


def _missing(factors: Factors) -> set[str]:
    wanted = {"w1"} if "w1" in factors else {"w1_a", "w1_b"}
    wanted |= {"w2"} if "w2" in factors else {"w2_a", "w2_b"}
    return wanted - factors.keys()


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    return read_lycoris(config, modules, "lokr_", _missing, rule="alpha / rank")


TUNER = Tuner(
    "LOKR",
    frozenset(f"lokr_{stem}" for stem in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    _read,
    nothing_refused,
)
