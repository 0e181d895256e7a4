"""The dtype in which a result is stored, where the user asks for another than the base's (--dtype).

Every floating tensor is then in this dtype. It is rounded once: a base's tensor from the values of
the file, a merged one from the sum in float32.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.quantization import CONFIG_KEYS
from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.merge_options import Dtype
    from lora_export.records import Checkpoint, Delta, ShardPlan, Step

FILE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The names of the dtypes in a safetensors file, by those of the option."""

_CONFIG_KEYS = ("dtype", "torch_dtype")
"""The members of a config that name the dtype of the weights: of transformers 5, and before it."""


def edit_dtype(
    dtype: Dtype | None, base: Checkpoint, edits: ConfigEdits, findings: Findings
) -> None:
    """Enter the dtype wherever config.json names one; refuse a base with quantised weights.

    Scales and tables of quantised weights are floating tensors, too. Rounded, they would give other
    weights.
    """
    if dtype not in FILE_NAMES:
        return
    found = base.quantization
    if found is not None and found.remains:
        what = f"weights are stored quantised ({found.method}), and their scales keep their dtype"
        hint = "leave --dtype out, or merge into the base that was quantised from"
        findings.unfit.append(Problem(what, str(base.root), hint, cause="fit/quantised"))
    for path, value in _named(base.config):
        if value != dtype:
            edits.edit_at(path, dtype)


def _named(
    config: Mapping[str, object], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield where a config and the configs inside it name a dtype, and which.

    What a config claims of quantised weights is left out: it names dtypes of other things.
    """
    for key, value in config.items():
        if isinstance(value, dict) and key not in CONFIG_KEYS:
            yield from _named(value, (*path, key))
        elif key in _CONFIG_KEYS and isinstance(value, str):
            yield (*path, key), value


def in_dtype(
    dtype: Dtype | None, shards: Sequence[ShardPlan], findings: Findings
) -> tuple[ShardPlan, ...]:
    """Return the shards with every floating tensor in the dtype, and report it as a choice."""
    stored = FILE_NAMES.get(dtype or "keep")
    if stored is None:
        return tuple(shards)
    before = [step for shard in shards for step in shard.steps]
    made = tuple(
        replace(shard, steps=tuple(_stored(step, stored) for step in shard.steps))
        for shard in shards
    )
    findings.choices.append(_choice(str(dtype), before, [s for shard in made for s in shard.steps]))
    return made


def _stored(step: Step, dtype: str) -> Step:
    if step.out.dtype not in FLOAT_DTYPES:
        return step
    action = step.action
    if action == "copy" and step.source.spec.dtype != dtype:
        action = "cast"
    made = replace(
        step, out=replace(step.out, dtype=dtype), action=action, is_widened=bool(step.deltas)
    )
    return replace(made, deltas=tuple(_beside(delta, made.merge_dtype) for delta in step.deltas))


def in_wide(dtype: Dtype | None, deltas: Sequence[Delta]) -> tuple[Delta, ...]:
    """Return updates of no tensor of the result, as `in_dtype` returns those of its tensors."""
    if dtype not in FILE_NAMES:
        return tuple(deltas)
    return tuple(_beside(delta, "F64" if delta.dtype == "F64" else "F32") for delta in deltas)


def _beside(delta: Delta, dtype: str) -> Delta:
    """Return the update as the library computes it beside a weight in this dtype."""
    return replace(delta, dtype=dtype, held="")


def _choice(dtype: str, before: Sequence[Step], made: Sequence[Step]) -> str:
    """Describe what becomes of the tensors, and their bytes before and after."""
    actions = Counter(step.action for step in made)
    merged = sum(step.is_widened for step in made)
    other = Counter(s.out.dtype for s in made if s.out.dtype not in FLOAT_DTYPES)
    sizes = [sum(step.out.nbytes for step in steps) for steps in (before, made)]
    parts = [
        f"{counted(merged, 'tensor')} merged in float32 and rounded once",
        f"{actions['cast']:,} of the base cast",
        *(f"{number:,} of {name} as they are" for name, number in sorted(other.items())),
        f"{sizes[1]:,} bytes in place of {sizes[0]:,}",
    ]
    return f"--dtype {dtype}: {', '.join(parts)}"
