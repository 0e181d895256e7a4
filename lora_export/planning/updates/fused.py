"""litgpt's updates: the facts of the files beside them and of the options, taken together.

query, key and value of litgpt are blocks of unequal size in one weight. A merge that cut the weight
into equal thirds would be wrong, and no shape would show it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.layers import Shapes
from lora_export.layers.litgpt_qkv import KIND as QKV
from lora_export.planning.facts.user_facts import agreed
from lora_export.planning.updates.readings import Unresolved, delta_of, no_fit, readings_of
from lora_export.records import Facts, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Adapter, Delta, TensorSpec, Update

_NEEDED = ("alpha", "enable_lora", "n_head", "n_query_groups")
_LORALIB = "if these are loralib's own layers, take --dialect loralib"
_FILES = (
    "hyperparameters.yaml and model_config.yaml, which litgpt saves with it, have them: put both "
    "beside it; or give them in --hparams FILE as alpha, enable_lora, n_head and n_query_groups; "
    f"{_LORALIB}"
)
_OTHER_BASE = "is this the base that the adapter was trained on?"


def resolve_litgpt(
    adapter: Adapter, update: Update, module: str, base: TensorSpec, known: Facts
) -> Delta:
    """Resolve the one reading of a litgpt LoRALinear or LoRAQKVLinear (0.4.13, 0.5.13).

    known: the facts of the module from options, a model or a manifest.

    Raises:
        UsageError: they contradict the files beside the adapter.
        Unresolved: a fact is missing, or the shapes do not fit the facts.
    """
    where = f"{adapter.path}: {update.module}"
    own = update.own or Facts()
    named = replace(own, source=own.source or "the names of litgpt's layers")
    facts = agreed(where, named, known, f"leave it out; {_LORALIB}")
    facts = replace(facts, source=own.source or known.source or named.source)
    shapes = Shapes.of(update.factors, base.shape)
    readings = [one for one in readings_of(update.family, shapes) if one.kind == own.kind]
    readings = [one for one in readings if not one.fan_in_fan_out]  # litgpt only has nn.Linear
    if not readings:
        raise Unresolved(no_fit(update.family, shapes, base, where), missing=False)
    rank = readings[0].rank
    missing = missing_keys([facts])  # before the shapes complete the facts, for the message
    if facts.enable_lora is None:  # the shapes show it where all three are adapted
        facts = replace(facts, enable_lora=readings[0].enable_lora)
    _refuse_missing(facts, missing, where)
    if facts.rank not in (None, rank):
        message = f"rank is {rank} in the file but {facts.rank} in {facts.source}"
        raise Unresolved(Problem(message, where, cause="usage/facts-contradict"), missing=False)
    alpha = facts.alpha or 0.0
    heads = _heads(facts, shapes, base, where) if own.kind == QKV.name else ()
    delta = delta_of(
        adapter, update, module, base, readings[0], rank=rank, alpha=alpha, scaling=alpha / rank
    )
    return replace(
        delta,
        enable_lora=(facts.enable_lora or ()) if heads else (),
        heads=heads,
        by_group=bool(heads and own.by_group),
    )


def warn_of_cast(
    adapter: Adapter, given: Given, changes: TensorChanges, findings: Findings
) -> None:
    """Warn where litgpt would cast the base to the LoRA's dtype before it merges.

    Reproduces what `merge_lora` of litgpt 0.5.13 does to every tensor of the model.
    """
    dtypes = {ref.spec.dtype for update in adapter.updates for ref in update.factors.values()}
    merged = {given.stored[name].spec.dtype for name in changes.merged if name in given.stored}
    if adapter.dialect != "litgpt" or len(dtypes) != 1 or merged <= dtypes:
        return
    (lora,) = dtypes
    base = ", ".join(sorted(merged - dtypes))
    findings.warnings.append(
        f"{adapter.path.name}: litgpt's own merge casts the base from {base} to {lora} first; this "
        f"result keeps {base}"
    )


def missing_keys(facts: Iterable[Facts]) -> list[str]:
    """List the facts that a LoRA of litgpt needs and that some of its modules lack."""
    listed = list(facts)
    return [key for key in _NEEDED if any(getattr(one, key) is None for one in listed)]


def _refuse_missing(facts: Facts, listed: Sequence[str], where: str) -> None:
    """Refuse a module without the facts that its kind needs.

    listed: all facts that the adapter lacks, which the message names.
    """
    missing = missing_keys([facts])
    if missing and (facts.kind == QKV.name or "alpha" in missing):
        message = f"a LoRA of litgpt, without its {', '.join(listed)}: they are not in the file"
        raise Unresolved(Problem(message, where, _FILES, cause="usage/missing-fact"), missing=True)
    if facts.alpha is not None and not (math.isfinite(facts.alpha) and facts.alpha > 0):
        message = f"alpha = {facts.alpha:g} from {facts.source} is not a positive number"
        hint = "give the lora_alpha used in training; --weight scales a whole adapter"
        raise Unresolved(Problem(message, where, hint, cause="usage/option-value"), missing=True)


def _heads(facts: Facts, shapes: Shapes, base: TensorSpec, where: str) -> tuple[int, int]:
    """Return (n_head, n_query_groups), which divide the weight and fit the rows of B."""
    n_head, groups = facts.n_head or 1, facts.n_query_groups or 1
    enabled = facts.enable_lora or ()
    counts = (n_head, groups, groups)
    size, rest = divmod(base.shape[0], sum(counts))
    named = f"n_head = {n_head} and n_query_groups = {groups} from {facts.source}"
    if rest or n_head % groups:
        message = f"{named} do not divide the {base.shape[0]} rows of {base.name}"
        raise Unresolved(Problem(message, where, _OTHER_BASE, cause="fit/fused"), missing=False)
    (rows_a, _), (rows_b, rank) = shapes.a, shapes.b
    chosen = [count * size for count, on in zip(counts, enabled, strict=False) if on]
    if len(enabled) != len(counts) or len(chosen) * rank != rows_a or sum(chosen) != rows_b:
        blocks = ",".join(str(int(block)) for block in enabled)
        message = (
            f"{named} and enable_lora {blocks} mean {len(chosen) * rank} rows of A and "
            f"{sum(chosen)} of B, but the file has {rows_a} and {rows_b}"
        )
        raise Unresolved(Problem(message, where, _OTHER_BASE, cause="fit/fused"), missing=True)
    return n_head, groups
