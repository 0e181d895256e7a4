"""Reads LOKR: a Kronecker product, each side whole or decomposed (PEFT 0.21.2, tuners.lokr).

decompose_factor, decompose_both and use_effective_conv2d only choose shapes, and the tensors show
those. If a side is whole although the rank decomposes it, the config is another adapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.lycoris import read_lycoris
from lora_export.dialects.peft.module_factors import OTHER_CONFIG, place
from lora_export.dialects.peft.tuner import Tuner, no_refusals
from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.lycoris import Factors
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import Update


def _missing(factors: Factors) -> set[str]:
    wanted = {"w1"} if "w1" in factors else {"w1_a", "w1_b"}
    wanted |= {"w2"} if "w2" in factors else {"w2_a", "w2_b"}
    return wanted - factors.keys()


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    updates, problems = read_lycoris(config, modules, "lokr_", _missing, rule="alpha / rank")
    both = config.flag("decompose_both")
    for update in updates:
        rank = update.terms.rank if update.terms and update.terms.rank else 0
        sides = [
            side for side in ("w1", "w2") if _contradicts(update.factors, side, rank, both=both)
        ]
        if sides:
            message = (
                f"{' and '.join(sides)} do not have the shapes of rank {rank} in {ADAPTER_CONFIG}"
            )
            problems.append(
                Problem(
                    message, place(config, update.module), OTHER_CONFIG, cause="input/other-config"
                )
            )
    return updates, problems


def _contradicts(factors: Factors, side: str, rank: int, *, both: bool) -> bool:
    """Return whether a side is whole or decomposed against LoKrLayer.update_layer.

    PEFT decomposes a side whose larger size is more than twice the rank; w1 only if `both`.
    """
    whole = factors.get(side)
    if whole is not None:
        decomposes = rank < max(whole.spec.shape[:2], default=0) / 2
        return decomposes and (both or side == "w2")
    if side == "w1":
        size = max(factors["w1_a"].spec.shape[0], factors["w1_b"].spec.shape[-1])
        return not both or rank >= size / 2
    return False


TUNER = Tuner(
    "LOKR",
    frozenset(f"lokr_{stem}" for stem in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    _read,
    no_refusals,
)
