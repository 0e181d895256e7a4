"""From checkpoint and adapters to the plan: what every output tensor is made of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from lora_export.dialects.loralib import factor_key
from lora_export.errors import InputError, UsageError
from lora_export.planning.draft import Draft, Options
from lora_export.planning.facts.module_answers import join_shared, refuse_forgotten
from lora_export.planning.facts.unused import refuse_unused
from lora_export.planning.folder.folder_edits import plan_around
from lora_export.planning.full_tensors.account import refuse_lost
from lora_export.planning.full_tensors.find_ties import find_ties
from lora_export.planning.full_tensors.fit_full import (
    refuse_contested,
    refuse_foreign,
    refuse_other_shapes,
)
from lora_export.planning.full_tensors.heads import head_dtype, plan_heads
from lora_export.planning.full_tensors.replication import plan_replication
from lora_export.planning.full_tensors.separate_ties import plan_ties
from lora_export.planning.full_tensors.vocabulary import plan_vocabulary
from lora_export.planning.names.base_names import INNER_WRAPPERS, BaseNames, weight_names
from lora_export.planning.names.misfit import other_bases, why_not_compared
from lora_export.planning.names.network_names import tell_network
from lora_export.planning.updates.fit import fit_adapter
from lora_export.planning.updates.orientation import square_weights
from lora_export.planning.updates.quantized import without_quantized
from lora_export.records import MergePlan, ShardPlan, Step, TensorSpec
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from lora_export.planning.facts.architecture import Layers
    from lora_export.planning.facts.user_facts import FactTable
    from lora_export.planning.full_tensors.find_ties import Lookup
    from lora_export.planning.full_tensors.heads import Classes
    from lora_export.records import (
        Adapter,
        Checkpoint,
        ModelFacts,
        NameTable,
        Shard,
        StepAction,
        TensorRef,
    )


def make_plan(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    facts: FactTable,
    options: Options,
    *,
    model: ModelFacts | None = None,
    lookup: Lookup = lambda _: None,
    runtime: Callable[[Checkpoint], NameTable | None] = lambda _: None,
    classes: Classes = lambda _base, _task: None,
    architecture: Callable[[Checkpoint], Layers | None] = lambda _: None,
) -> MergePlan:
    """Decide every output tensor and every edit of a side file; no byte is written.

    model: what the user's own model tells. lookup: the groups of tied parameters of a folder's
    architecture, None where nobody knows; asked only when a table or a head may be concerned.
    runtime: the names of the running model, asked only when the base's own do not suffice.
    classes: the class of transformers for a base and a task; asked only for a new head.
    architecture: the kinds of the model's layers, asked only where shapes and names do not decide.

    Raises:
        InputError: the base holds low-rank factors and nobody said that it is unmerged.
        FitError: adapter and base do not fit, with every reason.
        UsageError: facts are missing, with every fact and how to give it.
    """
    touched = [name for adapter in adapters for name in adapter.names()]
    table = cache(lambda: runtime(base))
    ties = find_ties(base, touched, model, lookup, table)
    layers = cache(lambda: architecture(base))
    draft = Draft(base, base.tensors(), facts, model, options, ties, table, layers)
    draft.joined = {file: name for adapter in adapters for file, name in adapter.joined.items()}
    draft.mixed = len({u.terms is None for adapter in adapters for u in adapter.updates}) > 1
    _tell_wrappers(draft, adapters)
    _tell_prefixes(draft, adapters)
    _tell_other_bases(draft, adapters)
    draft.base = base = _without_factors(draft)
    plan_replication(draft, adapters)
    draft.stop_on_problems()
    unstored = [name for tie in ties for name in tie.names if name not in draft.stored]
    names = BaseNames([*draft.stored, *unstored])
    for adapter in without_quantized(draft, adapters):
        fit_adapter(draft, adapter, names)
    refuse_unused(draft, adapters)
    _tell_choices(draft, adapters)
    tell_network(draft)
    join_shared(draft)
    refuse_forgotten(draft)
    plan_vocabulary(draft)
    plan_heads(draft, adapters, classes)
    refuse_foreign(draft)
    refuse_other_shapes(draft)
    refuse_contested(draft)
    plan_ties(draft)
    side_files, card = plan_around(draft, adapters)
    draft.stop_on_problems()
    shards = _shards(draft)
    refuse_lost(draft, (step for shard in shards for step in shard.steps))
    draft.stop_on_problems()
    return MergePlan(
        base=base,
        adapters=tuple(adapters),
        recipe=options.recipe,
        shards=shards,
        side_files=side_files,
        card=card,
        index_name=base.index_name and safetensors_name(base.index_name),
        index_metadata=base.index_metadata,
        dropped=draft.dropped,
        unmatched=(*draft.unmatched, *draft.disbelieved),
        coupled=tuple(draft.coupled),
        separated=tuple(draft.separated),
        reshaped=tuple(draft.reshaped),
        twins=tuple(draft.twins),
        choices=tuple(draft.choices),
        warnings=tuple(draft.warnings),
    )


def _tell_choices(draft: Draft, adapters: Sequence[Adapter]) -> None:
    """What was left out, overridden, or believed of a manifest."""
    if draft.unmatched:
        draft.warnings.append(
            f"{len(draft.unmatched)} tensors of the adapters are left out (--allow-unmatched): "
            f"{first_names(draft.unmatched)}"
        )
    if draft.disbelieved:
        draft.warnings.append(
            f"{len(draft.disbelieved)} tensors are left out as adapter_config.json says "
            f"(--trust-config): {first_names(draft.disbelieved)}"
        )
    if draft.believed:
        draft.warnings.append(
            f"{len(draft.believed)} tensors are merged that adapter_config.json leaves out "
            f"(--trust-file): {first_names(draft.believed)}"
        )
    if taken := draft.facts.taken:
        keys = ", ".join(dict.fromkeys(key for keys in taken.values() for key in keys))
        draft.warnings.append(
            f"{keys} of {len(taken)} modules: taken from the manifest of what is verified"
        )
    deltas = [delta for listed in draft.merged.values() for delta in listed]
    draft.choices += draft.facts.overridden(dict.fromkeys(delta.module for delta in deltas))
    draft.choices += square_weights(draft, deltas)
    for adapter in adapters:
        for why in dict.fromkeys(adapter.left_out.values()):
            same = [key for key, reason in adapter.left_out.items() if reason == why]
            verb = "takes" if len(same) == 1 else "take"
            draft.choices.append(f"{first_names(same)} {verb} no part: {why}")
    if draft.kept:
        equal = counted(len(draft.kept), "full tensor")
        names = first_names(draft.kept)
        draft.choices.append(f"{equal} equal to the base's, which is kept ({names})")


def refuse_adapter_as_base(base: Checkpoint) -> None:
    """Refuse a base that holds factors and no weight for any of them: it is an adapter.

    Raises:
        UsageError: so it is.
    """
    stored = base.tensors()
    modules = [key[0] for name in stored if (key := factor_key(name))]
    if modules and not any(name in stored for m in modules for name in weight_names(m)):
        raise UsageError(
            "is named as the base, but holds low-rank factors without weights",
            where=str(base.root),
            hint="the base comes first, then the adapter: are the two swapped?",
        )


def _tell_wrappers(draft: Draft, adapters: Sequence[Adapter]) -> None:
    wrapped = [(shard.file, shard.wrapper) for shard in draft.base.shards]
    wrapped += [(adapter.path, adapter.wrapper) for adapter in adapters]
    draft.choices += [f"{path.name}: read from its {key!r}" for path, key in wrapped if key]
    draft.choices += [note for shard in draft.base.shards for note in shard.notes]
    draft.choices += [note for adapter in adapters for note in adapter.notes]
    draft.warnings += [f"{a.path.name}: {doubt}" for a in adapters for doubt in a.doubts]


def _tell_other_bases(draft: Draft, adapters: Sequence[Adapter]) -> None:
    """A base of the right shape may be the wrong one; with --strict that is a refusal."""
    found = other_bases(draft.base, adapters)
    if draft.options.strict:
        draft.unfit += found
        if why := why_not_compared(draft.base, adapters):
            draft.warnings.append(f"--strict compared nothing: {why}")
    else:
        draft.warnings += [f"{problem.message} (--strict refuses it)" for problem in found]


def _tell_prefixes(draft: Draft, adapters: Sequence[Adapter]) -> None:
    """Where the names of DataParallel or torch.compile were bridged, or stay in the result."""
    in_base = _wrappers(draft.stored)
    for adapter in adapters:
        bridged = _wrappers(adapter.names()) ^ in_base
        if bridged:
            told = " and ".join(f"'{prefix}'" for prefix in sorted(bridged))
            draft.choices.append(f"{adapter.path.name}: names are compared without {told}")
    if in_base:
        told = " and ".join(f"'{prefix}'" for prefix in sorted(in_base))
        draft.warnings.append(
            f"the base's own names carry {told}, as DataParallel, FSDP and torch.compile add it; "
            "the result keeps them, so a plain model loads it only when they are taken off"
        )


def _wrappers(names: Iterable[str]) -> set[str]:
    """The wrapper parts in `names`: `module.` where all begin so, those inside anywhere."""
    parts = [name.split(".") for name in names]
    found = {f"{wrapper}." for wrapper in INNER_WRAPPERS if any(wrapper in one for one in parts)}
    inner = [[part for part in one if part not in INNER_WRAPPERS] for one in parts]
    outer = bool(inner) and all(one[:1] == ["module"] and one[1:] for one in inner)
    return found | ({"module."} if outer else set())


def _without_factors(draft: Draft) -> Checkpoint:
    """The base without lora_A/B in it: its weights may be merged or not; only its owner knows."""
    base = draft.base
    factors = [name for name in draft.stored if factor_key(name)]
    if not factors:
        return base
    if not draft.options.unmerged_base:
        raise InputError(
            f"the base itself holds {len(factors)} low-rank factors ({factors[0]}, ...): whether "
            "its weights already contain the update is not in the file",
            where=str(base.root),
            hint="saved in train() mode or with merge_weights=False: say --unmerged-base; saved "
            "in eval() mode: its weights are merged already, merging again would double them, and "
            "without its lora_* keys it is the finished model (docs/formats-loralib.md shows how)",
        )
    reason = "a factor inside the base (--unmerged-base)"
    draft.dropped.update(dict.fromkeys(factors, reason))
    draft.choices.append(f"{counted(len(factors), 'low-rank factor')} of the base are left out")
    draft.warnings.append(
        "that the base's weights are unmerged is taken from --unmerged-base and cannot be checked: "
        "if it was saved in eval() mode, the result contains the update twice"
    )
    shards = tuple(
        replace(shard, tensors=tuple(r for r in shard.tensors if r.spec.name not in draft.dropped))
        for shard in base.shards
    )
    draft.stored = {name: ref for name, ref in draft.stored.items() if name not in draft.dropped}
    return replace(base, shards=shards)


def safetensors_name(name: str) -> str:
    """The name of a weight file or index after conversion to safetensors."""
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return name
    name = name.replace("pytorch_model", "model", 1)
    index = name.endswith(".index.json")
    stem = name.removesuffix(".index.json").rpartition(".")[0]
    return f"{stem}.safetensors{'.index.json' if index else ''}"


def _shards(draft: Draft) -> tuple[ShardPlan, ...]:
    own = {ref.spec.name for shard in draft.base.shards for ref in shard.tensors}
    plans = [_shard(draft, shard, own) for shard in draft.base.shards]
    last = plans[-1]
    steps = (*last.steps, *_added(draft))
    return (*plans[:-1], ShardPlan(last.file, steps, last.metadata))


def _shard(draft: Draft, shard: Shard, own: Collection[str]) -> ShardPlan:
    steps = [
        _step(draft, name, ref, is_new=name not in own)
        for ref in shard.tensors
        for name in draft.layers.get(ref.spec.name, (ref.spec.name,))
    ]
    converted = shard.container == "torch"
    metadata = {"format": "pt"} if converted else shard.metadata
    return ShardPlan(safetensors_name(shard.file.name), tuple(steps), metadata)


def _step(draft: Draft, name: str, ref: TensorRef, *, is_new: bool) -> Step:
    """What becomes of the base's tensor under the name that it has in the result."""
    source = draft.replaced.get(name) or draft.copies.get(name) or ref
    deltas = tuple(draft.merged.get(name, ()))
    spec = TensorSpec(name, ref.spec.dtype, source.spec.shape)
    action: StepAction = "merge" if deltas else "copy"
    reason = ""
    if is_new or source is not ref or name != ref.spec.name:
        action = "add" if is_new else "replace"
        reason = "" if source is not ref else f"the base's {ref.spec.name}"
    return Step(spec, action, source, deltas, reason, name in draft.in_turn)


def _added(draft: Draft) -> list[Step]:
    steps = []
    for name, ref in draft.added.items():
        spec = TensorSpec(name, head_dtype(draft, name, ref), ref.spec.shape)
        deltas = tuple(draft.merged.get(name, ()))
        is_new = name in draft.heads or name in draft.own or ref.spec.name == name
        reason = "a new tensor" if is_new else f"untied from {ref.spec.name}"
        steps.append(Step(spec, "add", ref, deltas, reason))
    return steps
