"""The user's network beside a base that has other names, or other tensors.

A pretrained encoder is saved without the prefix that it has inside a network of one's own, and a
checkpoint may hold a head that the network lacks. The plan is made in the base's names. So the
network's names are changed to the base's once, by one change of prefix, and back where it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import (
    IDENTITY,
    BaseNames,
    PrefixChange,
    choose_prefix,
    join,
    without_wrappers,
)
from lora_export.planning.updates.parameter_updates import wanted_of
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.planning.draft import Draft, Options
    from lora_export.planning.names.locating import Space
    from lora_export.records import (
        Adapter,
        Checkpoint,
        MergePlan,
        ModelFacts,
        Replacement,
        TensorRef,
        Update,
    )


@dataclass(frozen=True)
class NetworkNames:
    """What the network calls each tensor and module, by the base's name without wrappers.

    Both mappings are empty where the names are the same. nameless: tensors of the network, by its
    own names, whose names are those of other tensors in the base: no file gives them a value.
    """

    tensors: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    nameless: tuple[str, ...] = ()

    def tensor(self, name: str) -> str:
        """The network's name of a tensor; `name` itself where it is no other."""
        known = self._known.tensor(name)
        return self.tensors[known] if known else name

    @cached_property
    def _known(self) -> BaseNames:
        return BaseNames(self.tensors)

    def module(self, name: str) -> str:
        """The network's name of a module; `name` itself where it is no other."""
        return self.modules.get(without_wrappers(name), name)


def meet_network(
    model: ModelFacts, base: Checkpoint, adapters: Sequence[Adapter], options: Options
) -> tuple[ModelFacts, NetworkNames]:
    """The network's facts in the base's names, and the way back.

    A tensor outside of the prefix keeps its name, unless the base has a tensor of that name that
    is another one: then it has no name beside the base's, and is left out of the facts.
    """
    stored = base.tensors()
    change = _find_change(model, stored, adapters, options)
    if change == IDENTITY:
        return model, NetworkNames()
    tensors = _tensors(model, BaseNames(stored), change)
    modules = _modules(tensors)
    names = NetworkNames(
        {base_name: name for name, base_name in tensors.items()},
        {base_name: name for name, base_name in modules.items()},
        tuple(name for name in model.tensors if name not in tensors),
    )

    def groups(
        listed: Sequence[Sequence[str]], known: Mapping[str, str]
    ) -> Iterator[tuple[str, ...]]:
        changed = (tuple(known[name] for name in group if name in known) for group in listed)
        yield from (group for group in changed if len(group) > 1)

    facts = replace(
        model,
        modules={modules[name]: f for name, f in model.modules.items() if name in modules},
        tensors={tensors[name]: s for name, s in model.tensors.items() if name in tensors},
        ties=tuple(groups(model.ties, tensors)),
        normed=frozenset(modules[name] for name in model.normed if name in modules),
        shared=tuple(groups(model.shared, modules)),
        change=(change.old, change.new),
        outside=frozenset(name for name, base_name in tensors.items() if name == base_name),
    )
    return facts, names


def _find_change(
    model: ModelFacts,
    stored: Mapping[str, TensorRef],
    adapters: Sequence[Adapter],
    options: Options,
) -> PrefixChange:
    """From the network's names to the base's, by the modules of the first adapter that fits."""
    network, base = BaseNames(model.tensors), BaseNames(stored)
    live = {name for name, facts in model.modules.items() if facts.rank is not None}
    for adapter in adapters:
        wanted = {
            without_wrappers(module): parameters
            for module, parameters in wanted_of(_left_in(adapter.updates, options)).items()
        }
        if not wanted:
            continue
        change, problems = choose_prefix(wanted, base, options.rename)
        if problems:
            continue
        if all(name in live for name in wanted):
            return change  # a file of factors has the names of the network that was trained
        in_base = {change.apply(name) or name: found for name, found in wanted.items()}
        if all(network.holds(name, found) for name, found in in_base.items()):
            return IDENTITY
        if all(network.holds(name, found) for name, found in wanted.items()):
            return change
        back, problems = choose_prefix(in_base, network)
        if not problems:
            return PrefixChange(back.new, back.old)
    return IDENTITY


def _left_in(updates: Sequence[Update], options: Options) -> list[Update]:
    """Those that neither --allow-unmatched nor --trust-config leaves out."""
    return [
        update
        for update in updates
        if not (update.outside and options.trust_file is False) and not _let_go(update, options)
    ]


def _let_go(update: Update, options: Options) -> bool:
    keys = [join(update.module, f"lora_{role}") for role in update.factors]
    keys += [ref.spec.name for ref in update.factors.values()]
    return any(fnmatchcase(key, glob) for key in keys for glob in options.allow_unmatched)


def _tensors(model: ModelFacts, base: BaseNames, change: PrefixChange) -> dict[str, str]:
    """The base's name of each tensor of the network; what the base stores comes first."""
    found: dict[str, str] = {}
    taken: set[str] = set()

    def take(name: str, base_name: str | None) -> None:
        plain = without_wrappers(base_name or "")
        if base_name is not None and name not in found and plain not in taken:
            found[name] = plain
            taken.add(plain)

    changed = {name: change.apply(name) for name in model.tensors}
    for name, new in changed.items():
        take(name, base.tensor(new) if new is not None else None)
    for name in model.tensors:
        take(name, base.tensor(name))
    for name, new in changed.items():
        take(name, name if new is None else new)
    return found


def _modules(tensors: Mapping[str, str]) -> dict[str, str]:
    """The base's name of each module that holds tensors, as those are called."""
    found: dict[str, str] = {}
    for name, base_name in tensors.items():
        own, other = name.split(".")[:-1], base_name.split(".")[:-1]
        while own:
            found.setdefault(".".join(own), ".".join(other))
            if not other:
                break
            own, other = own[:-1], other[:-1]
    return found


def tell_network(draft: Draft) -> None:
    """Which prefix was changed, and which tensors of the base the network has no place for."""
    if draft.model is None:
        return
    source = draft.model.source
    if draft.model.change != ("", ""):
        change = PrefixChange(*draft.model.change)
        draft.choices.append(f"the names of {source} are the base's after {change}")
    homeless = without_place(draft.model, draft.stored)
    changed = [name for name in homeless if name in draft.merged or name in draft.replaced]
    hint = f"does {source} build the network that was trained?"
    message = "is changed by the adapter, and the network has no such tensor"
    draft.unfit += [Problem(message, name, hint) for name in changed]
    if homeless and not changed:
        count = counted(len(homeless), "tensor")
        draft.warnings.append(
            f"{count} of the base without a place in {source}: {first_names(homeless)}; the "
            "network is built without them, and the result keeps them"
        )


def without_place(model: ModelFacts, names: Mapping[str, object]) -> list[str]:
    """The names, of the base or the result, that the network has no tensor for."""
    known = BaseNames(model.tensors)
    return [name for name in names if known.tensor(name) is None]


def whole_parts_without_values(model: ModelFacts, plan: MergePlan) -> list[str]:
    """The network's tensors to which the result gives no value, if they are parts of their own.

    A part is a module of which the result holds nothing, and which is no numbered layer: a head
    that was not saved. Empty where another tensor has no value either: this is another network.
    """
    known = BaseNames(model.tensors)
    held = {known.tensor(step.out.name) for step in plan.steps()}
    held |= {name for group in model.ties if held & set(group) for name in group}
    unset = [name for name in model.tensors if name not in held]
    parents = {parent for name in held if name for parent in _parents(name)}
    return unset if all(_is_apart(name, parents) for name in unset) else []


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _is_apart(name: str, held: set[str]) -> bool:
    """The outermost module of `name` of which nothing is held is there, and is not numbered."""
    part = next((parent for parent in _parents(name) if parent not in held), None)
    return part is not None and not any(piece.isdigit() for piece in part.split("."))


def in_network(
    draft: Draft, replacements: Sequence[Replacement], space: Space
) -> tuple[list[Replacement], dict[str, str | None]]:
    """The full tensors by their names in the result, and the base's tensor that each replaces.

    The network tells which of them lie outside of the prefix. One of those is no tensor of the
    base, unless the network has it under the base's name as well.
    """
    model = draft.model
    found: list[Replacement] = []
    targets: dict[str, str | None] = {}
    for replacement in replacements:
        plain = without_wrappers(replacement.name)
        changed = space.change.apply(plain)
        name = plain if changed is None else changed
        target = space.names.tensor(name)
        if target and model and changed is None and plain not in model.outside:
            message = f"lies outside of {space.change.old}, and the base's {target} does not"
            hint = "give the base the network's names, or leave it out with --allow-unmatched"
            where = f"{replacement.ref.file}: {replacement.name}"
            draft.unfit.append(Problem(message, where, draft.way_out(replacement.ref, hint)))
            continue
        found.append(replace(replacement, name=name))
        targets[name] = target
    return found, targets
