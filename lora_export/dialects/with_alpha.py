"""Reads LoRA files that hold alpha themselves: a scalar `<module>.alpha` beside lora_A and lora_B.

ComfyUI and several trainers write such files. The scaling is kohya's, alpha / rank. kohya's merge
has the same arithmetic as PEFT's, so the layers are PEFT's.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import scalar_value
from lora_export.dialects.dialect import Dialect, Evidence
from lora_export.dialects.loralib import pair_problems
from lora_export.errors import InputError
from lora_export.records import Adapter, Problem, Replacement, Terms, Update
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import AdapterFile, TensorRef

    Pairs = dict[str, dict[str, TensorRef]]

_FACTOR = re.compile(r"(?:(?P<module>.+)\.)?lora_(?P<role>[AB])(?:\.weight)?", re.DOTALL)
_ALPHA = "alpha"
# Parts of an update that such files may hold beside A and B; they must not pass for full tensors.
_PARTS = re.compile(
    r".+\.(?:diff|diff_b|w_norm|b_norm|reshape_weight|set_weight|lora_B\.bias)|bundle_emb\..+",
    re.DOTALL,
)
_COMFY = "ComfyUI loads it, and its Save nodes write the merged weights"


def _module_of_alpha(name: str, ref: TensorRef) -> str | None:
    """Return the module whose alpha the tensor is; None when it is no single number named alpha."""
    module, _, last = name.rpartition(".")
    is_single = ref.spec.elements == 1 and len(ref.spec.shape) < 2
    return module if last == _ALPHA and is_single else None


def _recognizes(file: AdapterFile) -> Evidence:
    adapted = {found["module"] or "" for name in file.tensors if (found := _FACTOR.fullmatch(name))}
    held = {_module_of_alpha(name, ref) for name, ref in file.tensors.items()}
    return Evidence.TRAINERS_NAMES if adapted & held else Evidence.NONE


def _read(file: AdapterFile, weight: float) -> Adapter:
    pairs: Pairs = {}
    problems: list[Problem] = []
    for name, ref in file.tensors.items():
        if found := _FACTOR.fullmatch(name):
            pair = pairs.setdefault(found["module"] or "", {})
            if pair.setdefault(found["role"], ref) is not ref:
                problems.append(
                    Problem(
                        "a second key is the same factor",
                        f"{file.path}: {name}",
                        cause="input/adapter-keys",
                    )
                )
    alphas = {
        module: ref
        for name, ref in file.tensors.items()
        if (module := _module_of_alpha(name, ref)) in pairs and module is not None
    }
    for module, pair in pairs.items():
        problems += pair_problems(file, module, pair, matrices=False)
    problems += [
        Problem(
            "a part of the update that is not merged yet",
            f"{file.path}: {name}",
            _COMFY,
            cause="input/other-trainer",
        )
        for name in file.tensors
        if _PARTS.fullmatch(name)
    ]
    if problems:
        raise InputError.of(problems)
    values = _values(file, alphas)
    used = {ref.spec.name for pair in (*pairs.values(), alphas) for ref in pair.values()}
    return Adapter(
        file.path,
        DIALECT.name,
        tuple(_update(file, module, pair, values.get(module)) for module, pair in pairs.items()),
        tuple(Replacement(name, ref) for name, ref in file.tensors.items() if name not in used),
        weight,
        file.wrapper,
        doubts=_doubts(pairs, alphas),
        facts=tuple(ref.spec.name for ref in alphas.values()),
    )


def _values(file: AdapterFile, alphas: Mapping[str, TensorRef]) -> dict[str, float]:
    """Read every alpha as a number.

    Raises:
        InputError: some are not finite; all of them are named.
    """
    values = {module: scalar_value(ref) for module, ref in alphas.items()}
    problems = [
        Problem(
            f"alpha is {value}", f"{file.path}: {alphas[module].spec.name}", cause="input/factors"
        )
        for module, value in values.items()
        if not math.isfinite(value)
    ]
    if problems:
        raise InputError.of(problems)
    return values


def _update(
    file: AdapterFile, module: str, pair: Mapping[str, TensorRef], alpha: float | None
) -> Update:
    """Return the update of a module. Without an alpha the scaling is 1, as in kohya and ComfyUI."""
    rank = pair["A"].spec.shape[0] if pair["A"].spec.shape else 1
    terms = Terms(
        tuner="lora",
        alpha=float(rank) if alpha is None else alpha,
        rank=None,
        source=file.path.name,
        zero_is_ambiguous=True,
    )
    return Update(module, pair, terms=terms)


def _doubts(pairs: Pairs, alphas: Mapping[str, TensorRef]) -> tuple[str, ...]:
    lacking = [module for module in pairs if module not in alphas]
    if not lacking:
        return ()
    doubt = (
        f"{len(lacking)} of {counted(len(pairs), 'module')} have no alpha in the file, the others "
        f"do: their scaling is 1, as in kohya's tools and ComfyUI ({first_names(lacking)})"
    )
    return (doubt,)


DIALECT = Dialect("lora-with-alpha", _recognizes, _read)
