"""The checks of the changes by the user's model: shared modules, and modules without factors."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.names.base_names import join, without_wrappers
from lora_export.planning.names.network_names import without_place
from lora_export.planning.prefix_change import PrefixChange
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names
from lora_export.shown import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Delta, ModelFacts, TensorRef


def join_shared(given: Given, changes: TensorChanges, findings: Findings) -> Given:
    """Give all stored names of a shared module's tensor the changes of any of them.

    Such names are no tied tensors that could be separated, since the forward calls one module.

    Returns:
        `given` without the ties of shared modules.
    """
    if given.model is None or not given.model.shared:
        return given
    first = _first_names(given.model)
    groups: dict[str, list[str]] = {}
    changed = [*changes.merged, *changes.replaced, *changes.added]
    for name in dict.fromkeys([*given.stored, *changed]):
        groups.setdefault(_first_name(name, first), []).append(name)
    for shared, names in groups.items():
        stored = [name for name in names if name in given.stored]
        if shared.rpartition(".")[0] in first and stored:
            _join(names, stored, changes, findings)
    ties = (tie for tie in given.ties if len({_first_name(n, first) for n in tie.names}) > 1)
    return replace(given, ties=tuple(ties))


def _first_names(model: ModelFacts) -> Mapping[str, str]:
    return {name: group[0] for group in model.shared for name in group}


def _first_name(name: str, first: Mapping[str, str]) -> str:
    """Return the tensor's name with the first of its module's names."""
    module, _, leaf = without_wrappers(name).rpartition(".")
    return join(first.get(module, module), leaf)


def _join(
    names: Sequence[str], stored: Sequence[str], changes: TensorChanges, findings: Findings
) -> None:
    updates = chain.from_iterable(changes.merged.pop(n) for n in names if n in changes.merged)
    one_each: dict[str, Delta] = {}
    for delta in updates:
        kept = one_each.setdefault(delta.adapter, delta)
        same_roles = kept.factors.keys() == delta.factors.keys()
        pairs = ((ref, delta.factors[role]) for role, ref in kept.factors.items())
        if not same_roles or not _all_same(pairs):
            _refuse(findings, f"{kept.module} and {delta.module}", delta.adapter)
    tables = (changes.replaced, changes.added)
    whole = [table.pop(name) for name in names for table in tables if name in table]
    if not _all_same((whole[0], ref) for ref in whole[1:]):
        _refuse(findings, " and ".join(names), str(whole[0].file))
    for name in stored:
        if one_each:
            changes.merged[name] = list(one_each.values())
        if whole:
            changes.replaced[name] = whole[0]


def _all_same(pairs: Iterable[tuple[TensorRef, TensorRef]]) -> bool:
    return all(same_content(left, right) for left, right in pairs)


def _refuse(findings: Findings, names: str, where: str) -> None:
    message = f"{names} are one module in the model, and have different values in the file"
    findings.unfit.append(
        Problem(message, where, "is this the model that was trained?", cause="fit/other-model")
    )


def refuse_forgotten(given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Refuse a module that has factors in the model and none in any adapter."""
    if given.model is None or findings.has_problems:
        return  # an update with a problem of its own would be reported twice
    first = _first_names(given.model)
    adapted = {
        first.get(plain, plain)
        for plain in (without_wrappers(delta.module) for delta in changes.deltas())
    }
    for name, facts in given.model.modules.items():
        keys = [join(name, f"lora_{role}") for role in "AB"]
        is_allowed = given.options.allows_unmatched(keys)
        if facts.rank is not None and first.get(name, name) not in adapted and not is_allowed:
            message = f"has factors in {given.model.source} and none in the adapter"
            glob = shell_word(f"{name}.lora_*")
            hint = f"another model or an incomplete file? --allow-unmatched {glob}"
            findings.unfit.append(Problem(message, name, hint, cause="fit/other-model"))


def check_network(given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Note the change of prefix, and warn of the base's tensors that the network lacks.

    Such a tensor is a problem where an adapter changes it.
    """
    if given.model is None:
        return
    source = given.model.source
    if given.model.change != ("", ""):
        change = PrefixChange(*given.model.change)
        findings.choices.append(f"the names of {source} are the base's after {change}")
    homeless = without_place(given.model, given.stored)
    changed = [name for name in homeless if name in changes.merged or name in changes.replaced]
    hint = f"does {source} build the network that was trained?"
    message = "is changed by the adapter, and the network has no such tensor"
    findings.unfit += [Problem(message, name, hint, cause="fit/other-model") for name in changed]
    if homeless and not changed:
        count = counted(len(homeless), "tensor")
        findings.warnings.append(
            f"{count} of the base without a place in {source}: {first_names(homeless)}; the "
            "network is built without them, and the result keeps them"
        )
