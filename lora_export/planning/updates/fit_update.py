"""Fit one update to its tensors of the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.errors import UsageError
from lora_export.layers import all_kinds
from lora_export.planning.facts.architecture import built_facts
from lora_export.planning.names.base_names import join, without_wrappers
from lora_export.planning.updates.fused import resolve_litgpt
from lora_export.planning.updates.idle import zero_effect
from lora_export.planning.updates.orientation import stored_by
from lora_export.planning.updates.readings import Unresolved
from lora_export.planning.updates.resolve_by_shape import resolve
from lora_export.planning.updates.resolve_configured import resolve_configured
from lora_export.records import FLOAT_DTYPES, Facts, Problem

if TYPE_CHECKING:
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.planning.updates.idle import Idle
    from lora_export.planning.updates.parameter_updates import Settled
    from lora_export.records import Adapter, Delta, MergeRecipe, TensorSpec, Terms


@dataclass(frozen=True, slots=True)
class Resolved:
    """What is known of an update that was entered into the changes."""

    #: The adapter's path, and the model's name of the module.
    module: tuple[str, str]
    #: The source that decides how a square weight is stored; "" for the user's own options.
    turned_by: str
    #: Why the update changes nothing; None where it changes the weight.
    idle: Idle | None


def fit_update(
    adapter: Adapter, settled: Settled, given: Given, changes: TensorChanges, findings: Findings
) -> Resolved | None:
    """Enter the update of each of the base's tensors; None where it could not be resolved."""
    update, located = settled.update, settled.located
    where = f"{adapter.path}: {update.module or '(root module)'}"
    problem = _unusable(settled, where, given, changes)
    if problem:
        findings.unfit.append(problem)
        return None
    try:
        deltas, turned_by = _deltas(adapter, settled, given, changes)
        for weight, delta in deltas.items():
            _refuse_missing_rows(delta, changes.value_of(given, weight).spec, where)
    except UsageError as error:
        findings.missing += error.problems
        return None
    except Unresolved as unresolved:
        findings.missing += unresolved.missing
        findings.unfit += unresolved.unfit
        return None
    idle = None
    if not given.options.allow_noop:
        idle = zero_effect(update, next(iter(deltas.values())), where, findings)
    if located.parts:
        count = f"{len(deltas)} tensors of the base"
        findings.choices.append(f"{located.module}.{update.parameter}: {count} are its parts")
    for weight, delta in deltas.items():
        _enter(weight, delta, where, changes, findings)
    return Resolved((str(adapter.path), located.module), turned_by, idle)


def _enter(
    weight: str, delta: Delta, where: str, changes: TensorChanges, findings: Findings
) -> None:
    """Enter the update, after those of other adapters; refuse two that have no sum."""
    merged = changes.merged.setdefault(weight, [])
    if any(other.adapter == delta.adapter for other in merged):
        message = f"{weight} is updated by another module of the same adapter already"
        hint = "the same module under two names? leave one out with --allow-unmatched"
        findings.unfit.append(Problem(message, where, hint, cause="fit/two-values"))
    elif merged and any(all_kinds()[one.kind].multiplies for one in (delta, *merged)):
        message = f"{weight} is multiplied by one adapter and updated by another"
        hint = "their order matters: merge one, then the other into the result"
        findings.unfit.append(Problem(message, where, hint, cause="fit/two-values"))
    merged.append(delta)


def _refuse_missing_rows(delta: Delta, base: TensorSpec, where: str) -> None:
    if delta.indices and max(delta.indices) >= base.shape[0]:
        message = f"token {max(delta.indices)} is not among the {base.shape[0]} rows of {base.name}"
        hint = "merge into the base with the resized vocabulary that training started from"
        raise Unresolved(Problem(message, where, hint, cause="fit/vocabulary"), missing=False)


def _unusable(settled: Settled, where: str, given: Given, changes: TensorChanges) -> Problem | None:
    """Return why the base's tensors cannot be updated; None where they can."""
    located = settled.located
    names = located.tensors or tuple(part.name for part in located.parts)
    refs = [changes.value_of(given, name) for name in names]
    if located.obstacle:
        hint = "merge it with PEFT's merge_and_unload(), then export the result with this tool"
        message = f"the base stores {located.module}.{settled.update.parameter} otherwise"
        return Problem(f"{message}: {located.obstacle}", where, hint, cause="fit/unusable-layer")
    whole = refs if located.tensors else refs[:1]
    if not all(same_content(whole[0], other) for other in whole[1:]):
        message = f"the base holds {' and '.join(names)}, which differ; which is the weight?"
        return Problem(message, where, cause="fit/unusable-layer")
    odd = [ref.spec for ref in refs if ref.spec.dtype not in FLOAT_DTYPES]
    if odd:
        hint = "merge into the 16-bit or 32-bit base that was quantised from"
        return Problem(
            f"{odd[0].name} is stored as {odd[0].dtype}", where, hint, cause="fit/unusable-layer"
        )
    if given.model and without_wrappers(located.module) in given.model.normed:
        message = "an Embedding with max_norm is not equal to the unmerged model after merging"
        return Problem(message, where, "train without max_norm", cause="fit/unusable-layer")
    return None


def _deltas(
    adapter: Adapter, settled: Settled, given: Given, changes: TensorChanges
) -> tuple[dict[str, Delta], str]:
    """Resolve what the update does to each of the base's tensors, and Resolved.turned_by."""
    located = settled.located
    if not located.parts:
        base = changes.value_of(given, located.tensors[0]).spec
        delta, turned_by = _one_delta(adapter, settled, base, given)
        return dict.fromkeys(located.tensors, delta), turned_by
    whole = replace(given.stored[located.parts[0].name].spec, shape=located.shape)
    delta, turned_by = _one_delta(adapter, settled, whole, given)
    if delta.fan_in_fan_out:
        message = f"{located.module} is stored expert by expert, which holds none (in, out)"
        where = f"{adapter.path}: {settled.update.module}"
        hint = "was it trained with PEFT 0.18 or older? merge it with that"
        raise Unresolved(Problem(message, where, hint, cause="fit/unusable-layer"), missing=False)
    shapes = {part: given.stored[part.name].spec.shape for part in located.parts}
    parts = {
        part.name: replace(delta, shape=shape, start=part.start) for part, shape in shapes.items()
    }
    return parts, turned_by


def _one_delta(
    adapter: Adapter, settled: Settled, base: TensorSpec, given: Given
) -> tuple[Delta, str]:
    """Resolve delta and Resolved.turned_by, by the adapter's configuration or the user's facts."""
    if settled.update.terms is None:
        return _by_facts(adapter, settled, base, given)
    return _by_configuration(adapter, settled, settled.update.terms, base, given)


def _by_facts(
    adapter: Adapter, settled: Settled, base: TensorSpec, given: Given
) -> tuple[Delta, str]:
    update, module = settled.update, settled.located.module
    is_loralib = update.family == "loralib"
    built = built_facts(given.base, module, base, given.layers_of) if is_loralib else None
    facts = given.facts.of(module, str(adapter.path), built)
    by_built = built and given.facts.by_user(module).fan_in_fan_out is None
    turned_by = f"by {built.source}" if built and by_built else ""
    _refuse_foreign_recipe(adapter, given)
    if update.family == "litgpt":
        return resolve_litgpt(adapter, update, module, base, facts), turned_by
    has_bias = join(module, "bias") in given.stored
    model = given.model.source if given.model else ""
    delta = resolve(adapter, update, module, base, facts, has_bias=has_bias, model=model)
    return delta, turned_by


def _by_configuration(
    adapter: Adapter, settled: Settled, terms: Terms, base: TensorSpec, given: Given
) -> tuple[Delta, str]:
    module = settled.located.module
    facts = given.facts.of(module)  # not by adapter: its configuration has all that a manifest has
    stored = stored_by(given.base, module, terms, facts, turned=settled.turned)
    rounds_first = given.options.recipe == "peft-safe" or terms.rounds_first
    recipe: MergeRecipe = "peft-safe" if rounds_first else "peft"
    # Where some adapters give no alpha, the options apply only to these.
    options = Facts() if given.is_mixed else given.facts.by_user(module)
    delta = resolve_configured(
        adapter,
        settled.update,
        terms,
        module,
        base,
        by_user=options,
        stored=stored,
        recipe=recipe,
    )
    return delta, stored.source


def _refuse_foreign_recipe(adapter: Adapter, given: Given) -> None:
    recipe = given.options.recipe
    if recipe.startswith("peft"):
        message = f"{recipe!r} is the arithmetic of PEFT, and this is a {adapter.dialect} adapter"
        hint = "--recipe auto takes each library's own"
        raise Unresolved(
            Problem(message, str(adapter.path), hint, cause="usage/recipe"), missing=True
        )
