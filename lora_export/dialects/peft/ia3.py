"""IA3: vectors that multiply a layer's outputs, or in feed-forward modules its inputs.

PEFT 0.21.2, tuners.ia3. The outputs' vector multiplies the bias too, where the base has one.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.module_factors import place, with_biases
from lora_export.dialects.peft.patterns import compile_pattern
from lora_export.dialects.peft.tuner import Tuner, nothing_refused
from lora_export.records import Problem, Said, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules

_STEM = "ia3_l"


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    listed = _feedforward(config)
    hint = config.members.get("fan_in_fan_out")
    updates, problems = [], with_biases(config, modules)
    for module, stems in modules.items():
        shape = stems[_STEM].spec.shape if _STEM in stems else ()
        by_shape = _by_shape(shape)
        feedforward = listed(module) if listed else by_shape
        if feedforward is None or feedforward is not (
            feedforward if by_shape is None else by_shape
        ):
            problems.append(_unclear(config, module, shape))
            continue
        said = Said(
            tuner="ia3_feedforward" if feedforward else "ia3",
            alpha=1.0,
            rank=None,
            rule="1",
            fan_in_fan_out=hint if isinstance(hint, bool) else None,
            source=ADAPTER_CONFIG,
        )
        factors = {"L": stems[_STEM]}
        updates.append(Update(module, factors, said=said))
        if not feedforward:
            updates.append(Update(module, factors, "bias", said, optional=True))
    return updates, problems


def _feedforward(config: PeftConfig) -> Callable[[str], bool] | None:
    """IA3Model._check_target_module_feedforward there; None where the file does not say."""
    given = config.members.get("feedforward_modules")
    if given is None:
        return None
    if isinstance(given, str):
        pattern = compile_pattern(given, str(config.path))
        # What fits as a whole fits after a prefix too, and that is bounded.
        return lambda module: pattern.fits(module) and re.fullmatch(given, module) is not None
    ends = config.texts("feedforward_modules")
    return lambda module: module.endswith(ends)


def _by_shape(shape: tuple[int, ...]) -> bool | None:
    """(1, in) or (out, 1); None for a convolution, whose vector lies the same way in both."""
    if len(shape) != 2 or prod(shape) == 1:  # noqa: PLR2004
        return None
    return shape[0] == 1


def _unclear(config: PeftConfig, module: str, shape: tuple[int, ...]) -> Problem:
    where = place(config, module)
    if not shape:
        return Problem(f"{_STEM} missing or without sizes", where)
    if config.members.get("feedforward_modules") is None:
        message = (
            f"feedforward_modules is not in {ADAPTER_CONFIG}, and a vector {list(shape)} does "
        )
        return Problem(f"{message}not tell whether it is for inputs or outputs", where)
    message = f"a vector {list(shape)} contradicts feedforward_modules in {ADAPTER_CONFIG}"
    hint = "the configuration belongs to another file: save the adapter again"
    return Problem(message, where, hint)


TUNER = Tuner("IA3", frozenset({_STEM}), _read, nothing_refused)
