"""Fit one adapter to the base: every tensor of its file is used exactly once, or is a problem."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from lora_export.checkpoint.contents import is_zero, same_content
from lora_export.layers import all_kinds
from lora_export.planning.names import (
    IDENTITY,
    choose_prefix,
    join,
    replacement_names,
    without_wrappers,
)
from lora_export.planning.orientation import stores_in_out
from lora_export.planning.resolve import Unresolved, resolve
from lora_export.planning.said import resolve_said
from lora_export.planning.whole import fit_copies, fit_whole
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.draft import Draft
    from lora_export.planning.names import BaseNames
    from lora_export.records import Adapter, Delta, MergeRecipe, TensorSpec, Update

Item = TypeVar("Item")


def fit_adapter(draft: Draft, adapter: Adapter, names: BaseNames) -> None:
    """Add what `adapter` does to `draft`, and every reason why it cannot."""
    updates = _left_in(draft, adapter.updates, [list(keys_of(u)) for u in adapter.updates])
    replacements = _left_in(draft, adapter.replacements, [[r.name] for r in adapter.replacements])
    if not updates:
        message = "no low-rank factors are left after --allow-unmatched"
        draft.unfit.append(Problem(message, str(adapter.path)))
        return
    change, problems = choose_prefix([u.module for u in updates], names, draft.options.rename)
    draft.unfit += [_at(adapter, problem) for problem in problems]
    if problems:
        return
    if change != IDENTITY:
        draft.choices.append(f"{adapter.path.name}: {change}, resolves all {len(updates)} modules")
    targets = replacement_names([r.name for r in replacements], change, names)
    fit_copies(draft, adapter, replacements, targets)
    for update in updates:
        located = names.locate(update.module, change, update.parameter)
        _fit_update(draft, adapter, update, located)
    for replacement in replacements:
        target = targets[replacement.name]
        plain = without_wrappers(replacement.name)
        if target and without_wrappers(target) not in {plain, change.apply(plain)}:
            draft.choices.append(f"{replacement.name}: the base calls it {target}")
    fit_whole(draft, adapter, replacements, targets)


def keys_of(update: Update) -> Sequence[str]:
    """The names of its factors, as globs of the user see them."""
    if update.said is not None:
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


def _fit_update(
    draft: Draft, adapter: Adapter, update: Update, located: tuple[str, tuple[str, ...]]
) -> None:
    module, weights = located
    where = f"{adapter.path}: {update.module or '(root module)'}"
    refs = [draft.value_of(weight) for weight in weights]
    if len(refs) > 1 and not all(same_content(refs[0], other) for other in refs[1:]):
        message = f"the base holds {' and '.join(weights)}, which differ; which is the weight?"
        draft.unfit.append(Problem(message, where))
        return
    base = refs[0].spec
    if base.dtype not in FLOAT_DTYPES:
        hint = "merge into the 16-bit or 32-bit base that was quantised from"
        draft.unfit.append(Problem(f"{base.name} is stored as {base.dtype}", where, hint))
        return
    if draft.model and without_wrappers(module) in draft.model.normed:
        message = "an Embedding with max_norm is not equal to the unmerged model after merging"
        draft.unfit.append(Problem(message, where, "train without max_norm"))
        return
    try:
        delta = _resolved(draft, adapter, update, module, base)
        _refuse_missing_rows(delta, base, where)
    except Unresolved as unresolved:
        draft.missing += unresolved.missing
        draft.unfit += unresolved.unfit
        return
    adds = all_kinds()[delta.kind].change is None
    zero = [role for role, ref in update.factors.items() if adds and is_zero(ref)]
    if zero and not draft.options.allow_noop:
        message = f"lora_{zero[0]} is all zero, so this update changes nothing"
        hint = "an untrained or wrongly saved adapter? --allow-noop accepts it"
        draft.unfit.append(Problem(message, where, hint))
    for weight in weights:
        merged = draft.merged.setdefault(weight, [])
        if any(other.adapter == delta.adapter for other in merged):
            message = f"{weight} is updated by another module of the same adapter already"
            hint = "the same module under two names? leave one out with --allow-unmatched"
            draft.unfit.append(Problem(message, where, hint))
        merged.append(delta)


def _refuse_missing_rows(delta: Delta, base: TensorSpec, where: str) -> None:
    if delta.indices and max(delta.indices) >= base.shape[0]:
        message = f"token {max(delta.indices)} is not among the {base.shape[0]} rows of {base.name}"
        hint = "merge into the base with the resized vocabulary that training started from"
        raise Unresolved(Problem(message, where, hint), missing=False)


def _resolved(
    draft: Draft, adapter: Adapter, update: Update, module: str, base: TensorSpec
) -> Delta:
    """By the adapter's own word, or by the facts that the user gives."""
    facts = draft.facts.of(module, str(adapter.path))
    if update.said is None:
        _refuse_foreign_recipe(draft, adapter)
        has_bias = join(module, "bias") in draft.stored
        model = draft.model.source if draft.model else ""
        return resolve(adapter, update, module, base, facts, has_bias=has_bias, model=model)
    turned = facts.fan_in_fan_out
    if turned is None:
        turned = stores_in_out(draft.base, module)
    recipe: MergeRecipe = "peft-safe" if draft.options.recipe == "peft-safe" else "peft"
    return resolve_said(
        adapter,
        update,
        update.said,
        module,
        base,
        given=facts,
        stored_in_out=turned,
        recipe=recipe,
    )


def _refuse_foreign_recipe(draft: Draft, adapter: Adapter) -> None:
    recipe = draft.options.recipe
    if recipe.startswith("peft"):
        message = f"{recipe!r} is the arithmetic of PEFT, and this is a {adapter.dialect} adapter"
        hint = "--recipe auto takes each library's own"
        raise Unresolved(Problem(message, str(adapter.path), hint), missing=True)
