"""Fit one adapter to the base: every tensor of its file is used exactly once, or is a problem."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from lora_export.checkpoint.contents import is_zero, same_content
from lora_export.errors import UsageError
from lora_export.layers import all_kinds
from lora_export.planning.facts.architecture import built_facts
from lora_export.planning.facts.contested import refuse_partial_modules, settle_contested
from lora_export.planning.full_tensors.fit_full import (
    fit_copies,
    fit_whole,
    tell_biases,
    tell_unweighted,
)
from lora_export.planning.names.base_names import (
    BaseNames,
    join,
    replacement_names,
    without_wrappers,
)
from lora_export.planning.names.locating import Space, find_space, renamed_tensors
from lora_export.planning.names.misfit import lacking_extra, with_origin
from lora_export.planning.names.network_names import in_network
from lora_export.planning.updates.fused import resolve_litgpt, tell_cast
from lora_export.planning.updates.idle import judge_idle, note_no_effect
from lora_export.planning.updates.orientation import stored_by
from lora_export.planning.updates.parameter_updates import settle, wanted_of
from lora_export.planning.updates.projection import size_projection
from lora_export.planning.updates.resolve_by_shape import Unresolved, resolve
from lora_export.planning.updates.resolve_configured import resolve_said
from lora_export.records import FLOAT_DTYPES, Facts, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.planning.updates.parameter_updates import Settled
    from lora_export.records import (
        Adapter,
        Delta,
        MergeRecipe,
        Replacement,
        TensorSpec,
        Update,
    )

Item = TypeVar("Item")


def fit_adapter(draft: Draft, adapter: Adapter, names: BaseNames) -> None:
    """Add what `adapter` does to `draft`, and every reason why it cannot."""
    adapter = settle_contested(draft, adapter)
    updates = _left_in(draft, adapter.updates, [list(keys_of(u)) for u in adapter.updates])
    replacements = _left_in(draft, adapter.replacements, [[r.name] for r in adapter.replacements])
    if not updates:
        draft.unfit.append(_without_factors(draft, adapter))
        return
    space, choices, problems = find_space(
        wanted_of(updates),
        Space(names, draft.stored),
        draft.table,
        draft.options.rename,
        lacking_extra(draft.base),
    )
    problems = list(with_origin(draft.base, adapter, problems))
    held = [u for u in updates if not u.optional or _is_there(draft, space, u)]
    settled, unsure = ([], problems) if problems else settle(held, space, draft.table)
    draft.unfit += [_at(adapter, problem) for problem in unsure]
    if unsure:
        return
    draft.choices += [f"{adapter.path.name}: {choice}" for choice in choices]
    targets = _targets(replacements, space, names, draft)
    if draft.model and draft.model.change != ("", "") and space.homes is None:
        replacements, targets = in_network(draft, replacements, space)
    fit_copies(draft, replacements, targets)
    for one in settled:
        _fit_update(draft, adapter, one)
    judge_idle(draft, adapter, settled)
    size_projection(draft, adapter)
    for replacement in replacements:
        plain = without_wrappers(replacement.name)
        target = targets[replacement.name]
        if target and without_wrappers(target) not in {plain, space.change.apply(plain)}:
            draft.choices.append(f"{replacement.name}: the base calls it {target}")
    fit_whole(draft, adapter, replacements, targets, space.change)
    refuse_partial_modules(draft, adapter, targets)
    tell_cast(draft, adapter)
    tell_unweighted(draft, adapter)
    tell_biases(draft, adapter)


def _without_factors(draft: Draft, adapter: Adapter) -> Problem:
    """Why no update of the adapter is left."""
    where = str(adapter.path)
    if draft.disbelieved:
        message = "adapter_config.json leaves out every module that the file adapts"
        hint = "is it the configuration of this file? --trust-file does not ask it"
        return Problem(message, where, hint)
    if adapter.updates:
        return Problem("no low-rank factors are left after --allow-unmatched", where)
    message = f"no tensor is a low-rank factor as {adapter.dialect} writes them"
    return Problem(message, where, "leave --dialect out: it is recognised")


def _targets(
    replacements: Sequence[Replacement], space: Space, names: BaseNames, draft: Draft
) -> Mapping[str, str | None]:
    """The base tensor that each full tensor is for, None where the base has none."""
    plain = {r.name: without_wrappers(r.name) for r in replacements}
    found = replacement_names(list(plain), space.change, names)
    targets = {name: space.full_tensor(plain[name]) or one for name, one in found.items()}
    lacking = [plain[name] for name, one in targets.items() if one is None]
    renamed = renamed_tensors(lacking, space, draft.table)
    return {name: one or renamed.get(plain[name]) for name, one in targets.items()}


def keys_of(update: Update) -> Sequence[str]:
    """The names of its factors, as globs of the user see them."""
    if update.terms is not None:
        return [ref.spec.name for ref in update.factors.values()]
    return [join(update.module, f"lora_{role}") for role in update.factors]


def _at(adapter: Adapter, problem: Problem) -> Problem:
    where = f"{adapter.path}: {problem.where}" if problem.where else str(adapter.path)
    return Problem(problem.message, where, problem.hint)


def _left_in(draft: Draft, items: Sequence[Item], keys: Sequence[list[str]]) -> list[Item]:
    """The items none of whose keys the user let go with --allow-unmatched."""
    globs = draft.options.allow_unmatched
    left = []
    for item, names in zip(items, keys, strict=True):
        if any(fnmatchcase(name, glob) for name in names for glob in globs):
            draft.unmatched += names
        else:
            left.append(item)
    return left


def _fit_update(draft: Draft, adapter: Adapter, settled: Settled) -> None:
    update, located = settled.update, settled.located
    where = f"{adapter.path}: {update.module or '(root module)'}"
    problem = _unusable(draft, settled, where)
    if problem:
        draft.unfit.append(problem)
        return
    try:
        deltas = _resolved(draft, adapter, settled)
        for weight, delta in deltas.items():
            _refuse_missing_rows(delta, draft.value_of(weight).spec, where)
    except UsageError as error:
        draft.missing += error.problems
        return
    except Unresolved as unresolved:
        draft.missing += unresolved.missing
        draft.unfit += unresolved.unfit
        return
    note_no_effect(draft, adapter, update, next(iter(deltas.values())))
    if located.parts:
        count = f"{len(deltas)} tensors of the base"
        draft.choices.append(f"{located.module}.{update.parameter}: {count} are its parts")
    for weight, delta in deltas.items():
        _enter(draft, weight, delta, where)


def _enter(draft: Draft, weight: str, delta: Delta, where: str) -> None:
    """Plan the update, beside those of other adapters where that has a meaning."""
    merged = draft.merged.setdefault(weight, [])
    if any(other.adapter == delta.adapter for other in merged):
        message = f"{weight} is updated by another module of the same adapter already"
        hint = "the same module under two names? leave one out with --allow-unmatched"
        draft.unfit.append(Problem(message, where, hint))
    elif merged and any(all_kinds()[one.kind].multiplies for one in (delta, *merged)):
        message = f"{weight} is multiplied by one adapter and updated by another"
        hint = "their order matters: merge one, then the other into the result"
        draft.unfit.append(Problem(message, where, hint))
    merged.append(delta)


def _is_there(draft: Draft, space: Space, update: Update) -> bool:
    """The base has the parameter, and not of zeros, which no factor changes."""
    located = space.locate(update.module, update.parameter)
    if located is None:
        return False
    refs = [draft.value_of(name) for name in located.tensors]
    return not all(ref.spec.dtype in FLOAT_DTYPES and is_zero(ref) for ref in refs)


def _refuse_missing_rows(delta: Delta, base: TensorSpec, where: str) -> None:
    if delta.indices and max(delta.indices) >= base.shape[0]:
        message = f"token {max(delta.indices)} is not among the {base.shape[0]} rows of {base.name}"
        hint = "merge into the base with the resized vocabulary that training started from"
        raise Unresolved(Problem(message, where, hint), missing=False)


def _unusable(draft: Draft, settled: Settled, where: str) -> Problem | None:
    """Why the base's tensors cannot be updated."""
    located = settled.located
    names = located.tensors or tuple(part.name for part in located.parts)
    refs = [draft.value_of(name) for name in names]
    if located.obstacle:
        hint = "merge it with PEFT's merge_and_unload(), then export the result with this tool"
        message = f"the base stores {located.module}.{settled.update.parameter} otherwise"
        return Problem(f"{message}: {located.obstacle}", where, hint)
    whole = refs if located.tensors else refs[:1]
    if not all(same_content(whole[0], other) for other in whole[1:]):
        message = f"the base holds {' and '.join(names)}, which differ; which is the weight?"
        return Problem(message, where)
    odd = [ref.spec for ref in refs if ref.spec.dtype not in FLOAT_DTYPES]
    if odd:
        hint = "merge into the 16-bit or 32-bit base that was quantised from"
        return Problem(f"{odd[0].name} is stored as {odd[0].dtype}", where, hint)
    if draft.model and without_wrappers(located.module) in draft.model.normed:
        message = "an Embedding with max_norm is not equal to the unmerged model after merging"
        return Problem(message, where, "train without max_norm")
    return None


def _resolved(draft: Draft, adapter: Adapter, settled: Settled) -> dict[str, Delta]:
    """What the update does to each of the base's tensors, by their names."""
    located = settled.located
    if not located.parts:
        base = draft.value_of(located.tensors[0]).spec
        return dict.fromkeys(located.tensors, _one_delta(draft, adapter, settled, base))
    whole = replace(draft.stored[located.parts[0].name].spec, shape=located.shape)
    delta = _one_delta(draft, adapter, settled, whole)
    if delta.fan_in_fan_out:
        message = f"{located.module} is stored expert by expert, which holds none (in, out)"
        where = f"{adapter.path}: {settled.update.module}"
        hint = "was it trained with PEFT 0.18 or older? merge it with that"
        raise Unresolved(Problem(message, where, hint), missing=False)
    shapes = {part: draft.stored[part.name].spec.shape for part in located.parts}
    return {
        part.name: replace(delta, shape=shape, start=part.start) for part, shape in shapes.items()
    }


def _one_delta(draft: Draft, adapter: Adapter, settled: Settled, base: TensorSpec) -> Delta:
    """By the adapter's own word, or by the facts that the user gives."""
    update, module = settled.update, settled.located.module
    if update.terms is None:
        built = built_facts(draft, module, base) if update.family == "loralib" else None
        facts = draft.facts.of(module, str(adapter.path), built)
        if built and draft.facts.given(module).fan_in_fan_out is None:
            draft.turned_by[str(adapter.path), module] = f"by {built.source}"
        _refuse_foreign_recipe(draft, adapter)
        if update.family == "litgpt":
            return resolve_litgpt(adapter, update, module, base, facts)
        has_bias = join(module, "bias") in draft.stored
        model = draft.model.source if draft.model else ""
        return resolve(adapter, update, module, base, facts, has_bias=has_bias, model=model)
    facts = draft.facts.of(module)  # a manifest has nothing to add to the adapter's own word
    given = draft.facts.given(module)
    stored = stored_by(draft.base, module, update.terms, settled.turned, facts)
    draft.turned_by[str(adapter.path), module] = stored.source
    rounds_first = draft.options.recipe == "peft-safe" or update.terms.rounds_first
    recipe: MergeRecipe = "peft-safe" if rounds_first else "peft"
    return resolve_said(
        adapter,
        update,
        update.terms,
        module,
        base,
        given=Facts() if draft.mixed else given,  # else they are of the adapters that say nothing
        stored=stored,
        recipe=recipe,
    )


def _refuse_foreign_recipe(draft: Draft, adapter: Adapter) -> None:
    recipe = draft.options.recipe
    if recipe.startswith("peft"):
        message = f"{recipe!r} is the arithmetic of PEFT, and this is a {adapter.dialect} adapter"
        hint = "--recipe auto takes each library's own"
        raise Unresolved(Problem(message, str(adapter.path), hint), missing=True)
