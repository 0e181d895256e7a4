"""What the user's model tells about its modules: two names of one, and those without factors."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.names.base_names import join, without_wrappers
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Delta, ModelFacts, TensorRef


def join_shared(draft: Draft) -> None:
    """Do to every stored name of a shared module's tensor what is done to one of them.

    Such names are no tied tensors that could be separated: the forward calls one module.
    """
    if draft.model is None or not draft.model.shared:
        return
    first = _first_names(draft.model)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys([*draft.stored, *draft.merged, *draft.replaced, *draft.added]):
        groups.setdefault(_first_name(name, first), []).append(name)
    for shared, names in groups.items():
        if shared.rpartition(".")[0] in first and any(name in draft.stored for name in names):
            _join(draft, names)
    draft.ties = tuple(
        tie for tie in draft.ties if len({_first_name(name, first) for name in tie.names}) > 1
    )


def _first_names(model: ModelFacts) -> Mapping[str, str]:
    return {name: group[0] for group in model.shared for name in group}


def _first_name(name: str, first: Mapping[str, str]) -> str:
    """The tensor's name by the first name of its module."""
    module, _, leaf = without_wrappers(name).rpartition(".")
    return join(first.get(module, module), leaf)


def _join(draft: Draft, names: Sequence[str]) -> None:
    stored = [name for name in names if name in draft.stored]
    updates = chain.from_iterable(draft.merged.pop(n) for n in names if n in draft.merged)
    one_each: dict[str, Delta] = {}
    for delta in updates:
        kept = one_each.setdefault(delta.adapter, delta)
        same_roles = kept.factors.keys() == delta.factors.keys()
        pairs = ((ref, delta.factors[role]) for role, ref in kept.factors.items())
        if not same_roles or not _all_same(pairs):
            _refuse(draft, f"{kept.module} and {delta.module}", delta.adapter)
    tables = (draft.replaced, draft.added)
    whole = [table.pop(name) for name in names for table in tables if name in table]
    if not _all_same((whole[0], ref) for ref in whole[1:]):
        _refuse(draft, " and ".join(names), str(whole[0].file))
    for name in stored:
        if one_each:
            draft.merged[name] = list(one_each.values())
        if whole:
            draft.replaced[name] = whole[0]


def _all_same(pairs: Iterable[tuple[TensorRef, TensorRef]]) -> bool:
    return all(same_content(left, right) for left, right in pairs)


def _refuse(draft: Draft, names: str, where: str) -> None:
    message = f"{names} are one module in the model, and have different values in the file"
    draft.unfit.append(Problem(message, where, "is this the model that was trained?"))


def refuse_forgotten(draft: Draft) -> None:
    """A module of the model that would have factors in training and has none in any adapter."""
    if draft.model is None or draft.unfit or draft.missing:
        return  # an update that has a problem of its own is not forgotten
    first = _first_names(draft.model)
    adapted = {
        first.get(plain, plain)
        for plain in (without_wrappers(d.module) for ds in draft.merged.values() for d in ds)
    }
    globs = draft.options.allow_unmatched
    for name, facts in draft.model.modules.items():
        keys = [join(name, f"lora_{role}") for role in "AB"]
        let_go = any(fnmatchcase(key, glob) for key in keys for glob in globs)
        if facts.rank is not None and first.get(name, name) not in adapted and not let_go:
            message = f"has factors in {draft.model.source} and none in the adapter"
            hint = f"another model or an incomplete file? --allow-unmatched '{name}.lora_*'"
            draft.unfit.append(Problem(message, name, hint))
