"""Pairs the tensors of a result with the planned ones, where names, shapes or dtypes differ."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import TORCH_NAMES
from lora_export.records import Finding
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.records import MergePlan, TensorRef, TensorSpec

_WRAPPERS = frozenset(
    {"base_model", "module", "_orig_mod", "base_layer", "model", "language_model", "transformer",
     "modules_to_save", "original_module", "default"}
)  # fmt: skip
"""Components that a wrapper, or another version of transformers, puts into names or leaves out."""

_FACTOR = re.compile(r"(?:^|[._])(?:lora|hada|lokr|vera|ia3)_")
"""Occurs in the names of factors of every kind of adapter."""

IS_TABLE = re.compile(r"(?:^|[._])(?:embed\w*|wte|shared|lm_head|head|\w*decoder)\.weight$")
"""Occurs in the names of embeddings and heads, which may be one parameter of the model."""

_QUANTISED = re.compile(
    r"\.(?:absmax|quant_map|quant_state|SCB|qweight|qzeros|scales|weight_scale)"
)
"""Occurs in the names of tensors of quantised checkpoints."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The tensors of a result by the names of the plan."""

    refs: Mapping[str, TensorRef]
    """Those of the planned shape, in any dtype."""
    findings: tuple[Finding, ...]
    """What differs in names, shapes and dtypes."""


def pair(plan: MergePlan, written: Mapping[str, TensorRef]) -> Paired:
    """Pair what was written with what was planned: by name, else by the name without wrappers."""
    planned = {step.out.name: step.out for step in plan.steps()}
    missing = [name for name in planned if name not in written]
    extra = [name for name in written if name not in planned]
    renamed = _renamed(missing, extra)
    names = {name: renamed.get(name, name) for name in planned}
    refs = {name: written[own] for name, own in names.items() if own in written}
    lost = [name for name in missing if name not in renamed]
    left = [name for name in extra if name not in renamed.values()]
    findings = (
        *_of_new_names(renamed),
        *_of_lost(plan, lost),
        *_of_left(left),
        *_of_shapes(planned, refs),
        *_of_dtypes(planned, refs),
    )
    fitting = {name: ref for name, ref in refs.items() if ref.spec.shape == planned[name].shape}
    return Paired(fitting, findings)


def _renamed(missing: Sequence[str], extra: Sequence[str]) -> dict[str, str]:
    """Return the written name of each planned one that differs by wrappers alone."""
    wanted, found = Counter(map(_bare, missing)), Counter(map(_bare, extra))
    by_bare = {_bare(name): name for name in extra}
    return {
        name: by_bare[bare]
        for name in missing
        if wanted[bare := _bare(name)] == 1 and found[bare] == 1
    }


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _of_new_names(renamed: Mapping[str, str]) -> Iterator[Finding]:
    if renamed:
        name, other = next(iter(renamed.items()))
        message = f"{_tensors(len(renamed))} under other names: {other} in place of {name}"
        yield Finding("renamed", message, tuple(renamed.values()))


def _of_lost(plan: MergePlan, lost: Sequence[str]) -> Iterator[Finding]:
    apart = [name for name in lost if name in plan.separated]
    if apart:
        words = "tied again, and no longer equal in the merged model: its own values are missing"
        yield Finding("tied-wrongly", f"{_tensors(len(apart))} {words}", tuple(apart))
    if others := [name for name in lost if name not in apart]:
        yield Finding("tensors-missing", f"{_tensors(len(others))} missing", tuple(others))


def _of_left(left: Sequence[str]) -> Iterator[Finding]:
    factors = [name for name in left if _FACTOR.search(name)]
    quantised = [name for name in left if name not in factors and _QUANTISED.search(name)]
    apart = [name for name in left if IS_TABLE.search(name) and name not in factors]
    others = [name for name in left if name not in {*factors, *quantised, *apart}]
    if factors:
        message = f"{counted(len(factors), 'factor')} of an adapter stand in the weights: it was "
        yield Finding("factors-left", f"{message}saved without merging it", tuple(factors))
    if quantised:
        yield Finding("quantised", "the merged weights are quantised", tuple(quantised))
    if apart:
        message = f"{_tensors(len(apart))} stored apart, where the planned model has it tied"
        yield Finding("untied-wrongly", message, tuple(apart))
    if others:
        message = f"{_tensors(len(others))} not part of the merged model"
        yield Finding("tensors-added", message, tuple(others))


def _of_shapes(
    planned: Mapping[str, TensorSpec], refs: Mapping[str, TensorRef]
) -> Iterator[Finding]:
    pairs = [(planned[n].shape, ref.spec.shape, n) for n, ref in refs.items()]
    wrong = [(wanted, found, name) for wanted, found, name in pairs if wanted != found]
    turned = [one for one in wrong if one[1] == one[0][::-1]]
    resized = [one for one in wrong if one not in turned and one[0][1:] == one[1][1:]]
    others = [one for one in wrong if one not in turned and one not in resized]
    for code, words, some in (
        ("resized", "resized", resized),
        ("stored-transposed", "stored transposed", turned),
        ("other-shape", "of another shape", others),
    ):
        if some:
            wanted, found, _ = some[0]
            sizes = f"{'x'.join(map(str, found))}, where {'x'.join(map(str, wanted))} is planned"
            names = tuple(name for _, _, name in some)
            yield Finding(code, f"{_tensors(len(some))} {words}: {sizes}", names)


def _of_dtypes(
    planned: Mapping[str, TensorSpec], refs: Mapping[str, TensorRef]
) -> Iterator[Finding]:
    pairs = [(planned[name].dtype, ref.spec.dtype, name) for name, ref in refs.items()]
    wrong = [one for one in pairs if one[0] != one[1]]
    for wanted, found in dict.fromkeys(one[:2] for one in wrong):
        names = tuple(name for *both, name in wrong if both == [wanted, found])
        stored, base = (TORCH_NAMES.get(dtype, dtype) for dtype in (found, wanted))
        which = f"all {len(planned)} tensors are" if len(names) == len(planned) else ""
        message = f"{which or _tensors(len(names))} stored in {stored}, where {base} is planned"
        yield Finding("other-dtype", message, names)


def _tensors(number: int) -> str:
    return f"{counted(number, 'tensor')} {'is' if number == 1 else 'are'}"
