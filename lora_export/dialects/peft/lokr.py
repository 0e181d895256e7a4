"""LOKR: a Kronecker product, each side whole or decomposed (PEFT 0.21.2, tuners.lokr).

decompose_factor, decompose_both and use_effective_conv2d only choose the shapes, which the tensors
tell themselves. A file whose sides are whole where the rank decomposes them is another adapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.lycoris import read_lycoris
from lora_export.dialects.peft.module_factors import place
from lora_export.dialects.peft.tuner import Tuner, nothing_refused
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
        rank = update.said.rank if update.said and update.said.rank else 0
        sides = [side for side in ("w1", "w2") if _contradicts(update.factors, side, rank, both)]
        if sides:
            message = (
                f"{' and '.join(sides)} of the file are not as rank {rank} in {ADAPTER_CONFIG} "
            )
            hint = "the configuration belongs to another file: save the adapter again"
            where = place(config, update.module)
            problems.append(Problem(f"{message}makes them", where, hint))
    return updates, problems


def _contradicts(factors: Factors, side: str, rank: int, both: bool) -> bool:  # noqa: FBT001
    """LoKrLayer.update_layer there decomposes a side that is large for the rank."""
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
    nothing_refused,
)
