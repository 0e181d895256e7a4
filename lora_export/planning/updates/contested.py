"""Factors that an adapter's configuration leaves out: the user decides whether they are merged.

PEFT ignores them. So "as merge_and_unload() does" and "every tensor of the file is used" are two
results.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.planning.full_tensors.disputed import BOTH
from lora_export.planning.names.base_names import join, without_wrappers
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.fitted import Fitted
    from lora_export.planning.given import Given
    from lora_export.records import Adapter, NameTable, Update


def settle_contested(adapter: Adapter, given: Given, fitted: Fitted, findings: Findings) -> Adapter:
    """Return the adapter without the tensors that --trust-config leaves out.

    Updates are problems where no option decides. A full tensor is one only where it would change
    something, see full_tensors/disputed.py.
    """
    outside = {id(update): update for update in _outside(adapter, given)}
    whole = [item for item in adapter.replacements if item.outside]
    keys = [key for update in outside.values() for key in _keys(update)]
    keys += [item.ref.spec.name for item in whole]
    if given.options.trust_file is None:
        findings.unfit += _problems(adapter, outside.values())
        return adapter
    if given.options.trust_file:
        fitted.believed += keys
        return adapter
    fitted.disbelieved += keys
    return replace(
        adapter,
        updates=tuple(update for update in adapter.updates if id(update) not in outside),
        replacements=tuple(item for item in adapter.replacements if not item.outside),
    )


def _keys(update: Update) -> list[str]:
    return [ref.spec.name for ref in update.factors.values()]


def _outside(adapter: Adapter, given: Given) -> list[Update]:
    """List the updates that the configuration leaves out under every name of their module.

    The file may have the names of a checkpoint and the configuration those of the running model,
    or the other way round.
    """
    found = [
        update
        for update in adapter.updates
        if update.outside and not given.options.allows_unmatched(_keys(update))
    ]
    # The others are left out by their factors, whatever the names.
    known = [u for u in found if adapter.leaves_out(u.module)]
    table = given.name_table() if known else None
    if table is None:
        return found
    weights = {update.module: join(without_wrappers(update.module), "weight") for update in found}
    others = _other_names(given, table, frozenset(weights.values()))
    named = {u.module for u in known if not all(map(adapter.leaves_out, others[weights[u.module]]))}
    return [update for update in found if update.module not in named]


def _other_names(
    given: Given, table: NameTable, weights: Collection[str]
) -> Mapping[str, Sequence[str]]:
    """Return the names of these weights' modules in the running model and in the checkpoint.

    A part of a stack of experts has the name of the stack.
    """
    found: dict[str, list[str]] = {weight: [] for weight in weights}
    for weight, place in table.places(weights).items():
        found[weight].append(place.name.removesuffix(".weight"))
    for name, place in table.places(given.stored).items():
        if place.name in found:
            found[place.name].append(name.removesuffix(".weight"))
    return found


def _problems(adapter: Adapter, updates: Iterable[Update]) -> Iterator[Problem]:
    """Yield a problem for each member of the configuration that leaves modules out."""
    reasons: dict[str, dict[str, None]] = {}
    for update in updates:
        reasons.setdefault(update.outside, {})[update.module] = None
    for member, modules in reasons.items():
        count = counted(len(modules), "module")
        message = f"{member} in adapter_config.json leaves out {count} that the file adapts"
        names = first_names(list(modules))
        yield Problem(f"{message}: {names}", str(adapter.path), BOTH, cause="usage/disputed")
