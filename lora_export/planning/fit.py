"""Fit one adapter to the base: every tensor of its file is used exactly once, or is a problem."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from lora_export.checkpoint.contents import is_zero, same_content
from lora_export.layers import all_kinds
from lora_export.planning.names import (
    IDENTITY,
    BaseNames,
    choose_prefix,
    join,
    replacement_names,
    without_wrappers,
)
from lora_export.planning.orientation import stores_in_out
from lora_export.planning.resolve import Unresolved, resolve
from lora_export.planning.said import resolve_said
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import (
        Adapter,
        Delta,
        MergeRecipe,
        Replacement,
        TensorRef,
        TensorSpec,
        Update,
    )

Item = TypeVar("Item")

_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8"})

_DOUBLE = (
    "a state dict saved in eval mode already holds the update in its weights (it is the finished "
    "model); else save loralib.lora_state_dict(model) with model.train() on"
)


def fit_adapter(draft: Draft, adapter: Adapter, names: BaseNames) -> None:
    """Add what `adapter` does to `draft`, and every reason why it cannot."""
    updates = _left_in(draft, adapter.updates, [list(keys_of(u)) for u in adapter.updates])
    replacements = _left_in(draft, adapter.replacements, [[r.name] for r in adapter.replacements])
    if not updates:
        message = "no low-rank factors are left after --allow-unmatched"
        draft.unfit.append(Problem(message, str(adapter.path)))
        return
    # A bias is looked for beside the weight, which is adapted as well.
    weights = [u for u in updates if u.parameter != "bias"] or updates
    change, problems = choose_prefix(
        [u.module for u in weights],
        names,
        draft.options.rename,
        [u.parameter for u in weights],
    )
    draft.unfit += [_at(adapter, problem) for problem in problems]
    if problems:
        return
    if change != IDENTITY:
        draft.choices.append(f"{adapter.path.name}: {change}, resolves all {len(weights)} modules")
    for update in updates:
        located = names.locate(update.module, change, update.parameter)
        _fit_update(draft, adapter, update, located)
    targets = replacement_names([r.name for r in replacements], change, names)
    for replacement in replacements:
        target = targets[replacement.name]
        plain = without_wrappers(replacement.name)
        if target and without_wrappers(target) not in {plain, change.apply(plain)}:
            draft.choices.append(f"{replacement.name}: the base calls it {target}")
        _fit_replacement(draft, adapter, replacement, target)


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
    if not weights:
        message = f"the base has no {update.parameter} for this module, and the adapter updates it"
        hint = "lora_bias needs a layer with a bias: PEFT does not merge it either"
        draft.unfit.append(Problem(message, where, hint))
        return
    refs = [draft.stored[draft.table_of(weight)] for weight in weights]
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
    except Unresolved as unresolved:
        draft.missing += unresolved.missing
        draft.unfit += unresolved.unfit
        return
    _refuse_no_effect(draft, update, delta, where)
    for weight in weights:
        merged = draft.merged.setdefault(weight, [])
        if any(other.adapter == delta.adapter for other in merged):
            message = f"{weight} is updated by another module of the same adapter already"
            hint = "the same module under two names? leave one out with --allow-unmatched"
            draft.unfit.append(Problem(message, where, hint))
        merged.append(delta)


def _refuse_no_effect(draft: Draft, update: Update, delta: Delta, where: str) -> None:
    """A product with a zero factor; what depends on the weight may change it nevertheless."""
    if all_kinds()[delta.kind].product is None or draft.options.allow_noop:
        return
    if zero := [role for role, ref in update.factors.items() if is_zero(ref)]:
        message = f"lora_{zero[0]} is all zero, so this update changes nothing"
        hint = "an untrained or wrongly saved adapter? --allow-noop accepts it"
        draft.unfit.append(Problem(message, where, hint))
    if delta.scaling == 0:
        message = f"the scaling is 0 (alpha = {delta.alpha:g}), so this update changes nothing"
        draft.unfit.append(Problem(message, where, "--allow-noop accepts it"))


def _resolved(
    draft: Draft, adapter: Adapter, update: Update, module: str, base: TensorSpec
) -> Delta:
    """By the adapter's own word, or by the facts that the user gives."""
    if update.said is None:
        facts = draft.facts.of(module, str(adapter.path))
        _refuse_foreign_recipe(draft, adapter)
        has_bias = join(module, "bias") in draft.stored
        model = draft.model.source if draft.model else ""
        return resolve(adapter, update, module, base, facts, has_bias=has_bias, model=model)
    facts = draft.facts.of(module)  # a manifest has nothing to add to the adapter's own word
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


def _fit_replacement(
    draft: Draft, adapter: Adapter, replacement: Replacement, target: str | None
) -> None:
    where = f"{adapter.path}: {replacement.name}"
    if target is None:
        _fit_new(draft, replacement, where)
        return
    target = draft.table_of(target)
    ref, base = replacement.ref, draft.stored[target]
    if ref.spec.shape != base.spec.shape:
        message = f"has shape {list(ref.spec.shape)}, the base's {target} {list(base.spec.shape)}"
        draft.unfit.append(Problem(message, where, "is this the base it was trained on?"))
        return
    pair = {ref.spec.dtype, base.spec.dtype}
    if len(pair) > 1 and not (pair <= FLOAT_DTYPES or pair <= _INTEGERS):
        message = f"is stored as {ref.spec.dtype}, the base's {target} as {base.spec.dtype}"
        draft.unfit.append(Problem(message, where, "is this the base it was trained on?"))
        return
    if same_content(ref, base):
        draft.kept.append(replacement.name)
    elif target in draft.merged:
        message = (
            "the file holds low-rank factors and a full weight for this module, and the weight "
            "differs from the base's: whether it already contains the update is not in the file"
        )
        draft.unfit.append(Problem(message, where, _DOUBLE))
    else:
        _put(draft, draft.replaced, target, ref, where)


def _fit_new(draft: Draft, replacement: Replacement, where: str) -> None:
    """A full tensor the base does not hold: right only if the model is known to have it."""
    name, ref = replacement.name, replacement.ref
    plain = without_wrappers(name)
    in_model = draft.model is not None and draft.model.tensors.get(plain) == ref.spec.shape
    if in_model or any(fnmatchcase(name, glob) for glob in draft.options.allow_new):
        _put(draft, draft.added, name, ref, where)
        return
    near = ", ".join(BaseNames(draft.stored).nearest(name))
    kind = "" if ref.spec.dtype in FLOAT_DTYPES else f" ({ref.spec.dtype}: a mask buffer?)"
    draft.unfit.append(
        Problem(
            f"the base holds no such tensor{kind}; nearest: {near or 'nothing'}",
            where,
            f"a new head: --allow-new '{name}', or name the model with --model; "
            f"not needed: --allow-unmatched '{name}'",
        )
    )


def _put(draft: Draft, table: dict[str, TensorRef], name: str, ref: TensorRef, where: str) -> None:
    """Enter `ref`, unless another adapter wants something else there."""
    other = table.setdefault(name, ref)
    if other is not ref and not same_content(other, ref):
        message = f"{name} is replaced by {other.file} as well, with other values"
        draft.unfit.append(Problem(message, where, "leave one out with --allow-unmatched"))
