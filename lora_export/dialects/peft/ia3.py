"""Reads IA3: vectors that multiply a layer's outputs, or in feed-forward modules its inputs.

Reproduces PEFT 0.21.2, tuners.ia3. A vector of the outputs multiplies the base's bias too.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.module_factors import OTHER_CONFIG, place, with_biases
from lora_export.dialects.peft.patterns import compile_pattern
from lora_export.dialects.peft.tuner import Tuner, no_refusals
from lora_export.records import Problem, Terms, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules

_STEM = "ia3_l"


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    is_feedforward = _feedforward(config)
    hint = config.members.get("fan_in_fan_out")
    updates, problems = [], with_biases(config, modules)
    for module, stems in modules.items():
        shape = stems[_STEM].spec.shape if _STEM in stems else ()
        by_shape = _by_shape(shape)
        feedforward = is_feedforward(module) if is_feedforward else by_shape
        # Refused if neither config nor shape decides, or if they contradict each other.
        if feedforward is None or by_shape not in (None, feedforward):
            problems.append(_unclear(config, module, shape))
            continue
        terms = Terms(
            tuner="ia3_feedforward" if feedforward else "ia3",
            alpha=1.0,
            rank=None,
            rule="1",
            fan_in_fan_out=hint if isinstance(hint, bool) else None,
            source=ADAPTER_CONFIG,
        )
        factors = {"L": stems[_STEM]}
        updates.append(Update(module, factors, terms=terms))
        if not feedforward:
            updates.append(Update(module, factors, "bias", terms, optional=True))
    return updates, problems


def _feedforward(config: PeftConfig) -> Callable[[str], bool] | None:
    """Return a test for feed-forward modules; None when the config does not list them.

    Reproduces IA3Model._check_target_module_feedforward.
    """
    given = config.members.get("feedforward_modules")
    if given is None:
        return None
    if isinstance(given, str):
        pattern = compile_pattern(given, str(config.path))
        # fullmatch has no bound of its own, and a name that it fits also fits the bounded pattern.
        return lambda module: pattern.fits(module) and re.fullmatch(given, module) is not None
    ends = config.texts("feedforward_modules")
    return lambda module: module.endswith(ends)


def _by_shape(shape: tuple[int, ...]) -> bool | None:
    """Return whether a vector's shape is (1, in), of a feed-forward module, and not (out, 1).

    None for one element, and for a convolution, where both have one shape.
    """
    if len(shape) != 2 or prod(shape) == 1:
        return None
    return shape[0] == 1


def _unclear(config: PeftConfig, module: str, shape: tuple[int, ...]) -> Problem:
    where = place(config, module)
    if not shape:
        return Problem(f"{_STEM} missing or without sizes", where, cause="input/factors")
    if config.members.get("feedforward_modules") is None:
        message = f"feedforward_modules is not in {ADAPTER_CONFIG}, and a vector {list(shape)} can "
        hint = "add feedforward_modules to it, as in training"
        return Problem(
            f"{message}be for inputs or outputs", where, hint, cause="input/other-config"
        )
    message = f"a vector {list(shape)} contradicts feedforward_modules in {ADAPTER_CONFIG}"
    return Problem(message, where, OTHER_CONFIG, cause="input/other-config")


TUNER = Tuner("IA3", frozenset({_STEM}), _read, no_refusals)
