"""Reads what LoHa and LoKr share: r, alpha and their patterns (PEFT 0.21.2, lycoris_utils)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.module_factors import lacking, with_biases
from lora_export.dialects.peft.patterns import Patterns
from lora_export.records import Terms, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import Problem, ScalingRule, TensorRef

    Factors = Mapping[str, TensorRef]
    Missing = Callable[[Factors], Iterable[str]]


def read_lycoris(
    config: PeftConfig,
    modules: Modules,
    prefix: str,
    missing: Missing,
    *,
    rule: ScalingRule,
) -> tuple[list[Update], list[Problem]]:
    """Return the update of every module, and every problem.

    Args:
        config: the adapter's config.
        modules: factors by module and stem.
        prefix: how the stems begin, hada_ or lokr_.
        missing: returns the stems, without the prefix, that a module's other factors need.
        rule: how the scaling is computed.
    """
    ranks, alphas = Patterns(config.ranks()), Patterns(config.alphas())
    rank, alpha = config.whole("r", 8), config.number("alpha", 8)
    updates, problems = [], with_biases(config, modules)
    for module, stems in modules.items():
        factors = {stem.removeprefix(prefix): ref for stem, ref in stems.items()}
        absent = [prefix + stem for stem in missing(factors)]
        if problem := lacking(config, module, absent):
            problems.append(problem)
            continue
        terms = Terms(
            tuner=config.peft_type.lower(),
            alpha=alphas.first_fit(module, alpha),
            rank=ranks.first_fit(module, rank),
            rule=rule,
            source=ADAPTER_CONFIG,
        )
        updates.append(Update(module, factors, terms=terms))
    return updates, problems
