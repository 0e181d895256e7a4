"""Reads VERA: vectors of each module around one projection of all (PEFT 0.21.2, tuners.vera).

Without save_projection the projection is drawn anew from projection_prng_key, in the sizes of the
largest module. torch's generator gives the same numbers on every processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.module_factors import lacking, place, with_biases
from lora_export.dialects.peft.tuner import Tuner, no_refusals
from lora_export.records import Problem, Terms, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import TensorRef

_VECTORS = {"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"}
_PROJECTION = {"vera_A": "A", "vera_B": "B"}
_SEEDS = 1 << 64
"""A seed must be below this number: torch's generator takes 64 bits."""


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    shared = {stem: ref for stem, ref in modules.get("", {}).items() if stem in _PROJECTION}
    own = {
        module: stems.keys() & _PROJECTION.keys() if module else set()
        for module, stems in modules.items()
    }
    problems = [
        Problem(
            "holds a projection of its own",
            place(config, module),
            "save the adapter again",
            cause="input/other-config",
        )
        for module, found in own.items()
        if found
    ]
    problems += with_biases(config, modules)
    problems += _projection_problems(config, shared)
    seed = None if shared else _seed(config)
    rank = config.whole("r", 256)
    hint = config.members.get("fan_in_fan_out")
    updates = []
    for module, stems in modules.items():
        if not stems.keys() - _PROJECTION.keys():
            continue  # the projection itself
        if problem := lacking(config, module, _VECTORS.keys() - stems.keys()):
            problems.append(problem)
            continue
        terms = Terms(
            tuner="vera",
            alpha=1.0,
            rank=rank,
            rule="1",
            fan_in_fan_out=hint if isinstance(hint, bool) else None,
            source=ADAPTER_CONFIG,
            held_as_base=seed is not None,
            seed=seed,
        )
        factors = {role: stems[stem] for stem, role in _VECTORS.items()}
        factors |= {_PROJECTION[stem]: ref for stem, ref in shared.items()}
        updates.append(Update(module, factors, terms=terms))
    return updates, problems


def _projection_problems(config: PeftConfig, shared: Mapping[str, TensorRef]) -> list[Problem]:
    """Return why the projection in the file is not whole, or contradicts save_projection."""
    where = str(config.path.parent)
    again = "save the adapter again with save_pretrained"
    if len(shared) == 1:
        missing = min(_PROJECTION.keys() - shared.keys())
        message = f"{missing} missing beside the other half of the projection"
        return [Problem(message, where, again, cause="input/other-config")]
    saved = config.flag("save_projection", default=True)
    if saved and not shared:
        message = "save_projection is true, but vera_A and vera_B are not in the file"
        return [Problem(message, where, again, cause="input/other-config")]
    if shared and not saved:
        message = "save_projection is false, but vera_A and vera_B are in the file"
        hint = "PEFT would draw them anew; set save_projection to true to use those in the file"
        return [Problem(message, where, hint, cause="input/other-config")]
    return []


def _seed(config: PeftConfig) -> int:
    value = config.members.get("projection_prng_key")
    value = 0 if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _SEEDS:
        config.refuse("projection_prng_key", f"= {value!r:.80} is no seed of a generator")
    return value


TUNER = Tuner("VERA", frozenset({*_VECTORS, *_PROJECTION}), _read, no_refusals)
