"""What an adapter's file and its configuration say differently: the user says whom to believe.

PEFT ignores factors that the configuration leaves out, so "as merge_and_unload() does" and "every
tensor of the file is used" are two results.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import join, without_wrappers
from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, NameTable, Replacement, Update

BOTH = (
    "PEFT ignores these tensors, and --trust-config leaves them out; --trust-file merges every "
    "tensor of the file"
)


_PARTIAL = (
    "saved without gathering, or with another configuration? PEFT cannot load it; --trust-file "
    "merges the tensors that are there"
)


def settle_contested(draft: Draft, adapter: Adapter) -> Adapter:
    """The adapter without what the user does not trust; problems where that was not said.

    A full tensor is told of where it would change something: see full_tensors/fit_full.py.
    """
    outside = {id(update): update for update in _outside(draft, adapter)}
    whole = [item for item in adapter.replacements if item.outside]
    keys = [key for update in outside.values() for key in _keys(update)]
    keys += [item.ref.spec.name for item in whole]
    if draft.options.trust_file is None:
        draft.unfit += _problems(adapter, outside.values())
        return adapter
    if draft.options.trust_file:
        draft.believed += keys
        return adapter
    draft.disbelieved += keys
    return replace(
        adapter,
        updates=tuple(update for update in adapter.updates if id(update) not in outside),
        replacements=tuple(item for item in adapter.replacements if not item.outside),
    )


def _keys(update: Update) -> list[str]:
    return [ref.spec.name for ref in update.factors.values()]


def _outside(draft: Draft, adapter: Adapter) -> list[Update]:
    """The updates that the configuration leaves out, by every name that the module has.

    The file may have the names of a checkpoint, and the configuration those of the running model,
    or the other way round.
    """
    globs = draft.options.allow_unmatched
    found = [
        update
        for update in adapter.updates
        if update.outside
        and not any(fnmatchcase(key, glob) for key in _keys(update) for glob in globs)
    ]
    known = [u for u in found if adapter.leaves_out(u.module)]  # by its name, not by its factors
    table = draft.table() if known else None
    if table is None:
        return found
    weights = {update.module: join(without_wrappers(update.module), "weight") for update in found}
    others = _other_names(draft, table, frozenset(weights.values()))
    named = {u.module for u in known if not all(map(adapter.leaves_out, others[weights[u.module]]))}
    return [update for update in found if update.module not in named]


def _other_names(
    draft: Draft, table: NameTable, weights: Collection[str]
) -> Mapping[str, Sequence[str]]:
    """What the running model and the checkpoint call the modules of these weights.

    Of a part of a stack of experts it is the name of the stack.
    """
    found: dict[str, list[str]] = {weight: [] for weight in weights}
    for weight, place in table.places(weights).items():
        found[weight].append(place.name.removesuffix(".weight"))
    for name, place in table.places(draft.stored).items():
        if place.name in found:
            found[place.name].append(name.removesuffix(".weight"))
    return found


def _problems(adapter: Adapter, updates: Iterable[Update]) -> Iterator[Problem]:
    """One for each member of the configuration that leaves modules out."""
    reasons: dict[str, dict[str, None]] = {}
    for update in updates:
        reasons.setdefault(update.outside, {})[update.module] = None
    for member, modules in reasons.items():
        count = counted(len(modules), "module")
        message = f"{member} in adapter_config.json leaves out {count} that the file adapts"
        names = first_names(list(modules))
        yield Problem(f"{message}: {names}", str(adapter.path), BOTH)


def disputed(item: Replacement, where: str) -> Problem:
    """A full tensor that PEFT ignores and that would change the base."""
    if item.outside == "base_layer":
        message = (
            "is a tensor of an adapted module, which PEFT calls otherwise: its key has no "
            "base_layer, so PEFT does not load it"
        )
    else:
        message = f"is of a module that {item.outside} in adapter_config.json does not list"
    return Problem(message, where, BOTH)


def refuse_partial_modules(
    draft: Draft, adapter: Adapter, targets: Mapping[str, str | None]
) -> None:
    """modules_to_save trains whole modules: a file without some of their tensors is incomplete.

    PEFT 0.21.2 cannot load it. A module of which the file holds nothing may be one that the trained
    network does not have.
    """
    held = {target for target in targets.values() if target}
    modules = {_saved_module(name, adapter.heads) for name in held} - {""}
    held |= {draft.table_of(name) for name in held}
    lacking = [
        name
        for name, ref in draft.stored.items()
        if _saved_module(name, adapter.heads) in modules
        and name not in held
        and ref.spec.dtype in FLOAT_DTYPES
    ]
    if lacking and draft.options.trust_file is not True:
        count = counted(len(lacking), "tensor")
        message = f"the file lacks {count} of modules_to_save: {first_names(lacking)}"
        draft.unfit.append(Problem(message, str(adapter.path), _PARTIAL))


def _saved_module(name: str, heads: Sequence[str]) -> str:
    """The outermost module around a tensor that a name of `heads` ends; "" where there is none."""
    parts = name.split(".")[:-1]
    paths = (".".join(parts[: place + 1]) for place in range(len(parts)))
    return next((path for path in paths if path.endswith(tuple(heads))), "") if heads else ""
