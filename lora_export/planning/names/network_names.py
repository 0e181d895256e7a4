"""The user's network beside a base with other names, or other tensors.

A pretrained encoder is saved without the prefix that it has inside the user's network. A checkpoint
may hold a head that the network lacks. The plan is made in the base's names. So the network's names
are changed to the base's once, by one change of prefix. They are changed back to build the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import (
    BaseNames,
    choose_prefix,
    join,
    without_wrappers,
)
from lora_export.planning.names.locating import wanted_of
from lora_export.planning.prefix_change import IDENTITY, PrefixChange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.planning.merge_options import Options
    from lora_export.records import (
        Adapter,
        Checkpoint,
        MergePlan,
        ModelFacts,
        TensorRef,
        Update,
    )


@dataclass(frozen=True)
class NetworkNames:
    """The network's names of tensors and modules, by the base's names without wrappers."""

    #: The network's name of each tensor; empty where the names are the same.
    tensors: Mapping[str, str] = field(default_factory=dict)
    #: The network's name of each module; empty where the names are the same.
    modules: Mapping[str, str] = field(default_factory=dict)
    #: Tensors of the network whose names belong to other tensors in the base, so that no file
    #: gives them a value.
    nameless: tuple[str, ...] = ()

    def tensor(self, name: str) -> str:
        """Return the network's name of a tensor; `name` itself where both are the same."""
        known = self._known.tensor(name)
        return self.tensors[known] if known else name

    @cached_property
    def _known(self) -> BaseNames:
        return BaseNames(self.tensors)

    def module(self, name: str) -> str:
        """Return the network's name of a module; `name` itself where both are the same."""
        return self.modules.get(without_wrappers(name), name)


def meet_network(
    model: ModelFacts, base: Checkpoint, adapters: Sequence[Adapter], options: Options
) -> tuple[ModelFacts, NetworkNames]:
    """Return the network's facts in the base's names, and the names to change them back.

    A tensor outside of the prefix keeps its name. Where the base has another tensor of this name,
    the network's tensor is left out of the facts.
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
    """Find the change to the base's names, by the modules of the first adapter that fits."""
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
    """Keep the updates that neither --allow-unmatched nor --trust-config leaves out."""
    return [
        update
        for update in updates
        if not (update.outside and options.trust_file is False)
        and not _is_unmatched(update, options)
    ]


def _is_unmatched(update: Update, options: Options) -> bool:
    keys = [join(update.module, f"lora_{role}") for role in update.factors]
    keys += [ref.spec.name for ref in update.factors.values()]
    return options.allows_unmatched(keys)


def _tensors(model: ModelFacts, base: BaseNames, change: PrefixChange) -> dict[str, str]:
    """Find the base's name of each tensor of the network.

    The order decides which tensor gets a name that fits two: names that the base stores after the
    change come first, then stored names that stay as they are, then names that the base lacks.
    """
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
    """Find the base's name of each module that holds tensors, from the names of these tensors."""
    found: dict[str, str] = {}
    for name, base_name in tensors.items():
        own, other = name.split(".")[:-1], base_name.split(".")[:-1]
        while own:
            found.setdefault(".".join(own), ".".join(other))
            if not other:
                break
            own, other = own[:-1], other[:-1]
    return found


def without_place(model: ModelFacts, names: Mapping[str, object]) -> list[str]:
    """List the names for which the network has no tensor."""
    known = BaseNames(model.tensors)
    return [name for name in names if known.tensor(name) is None]


def whole_parts_without_values(model: ModelFacts, plan: MergePlan) -> list[str]:
    """List the network's tensors without a value in the result, if they form whole parts.

    Such a part is a module without any value that is no numbered layer, such as a head that was not
    saved. The list is empty where further tensors have no value: this is another network.
    """
    known = BaseNames(model.tensors)
    known_values = {known.tensor(step.out.name) for step in plan.steps()}
    known_values |= {name for group in model.ties if known_values & set(group) for name in group}
    unset = [name for name in model.tensors if name not in known_values]
    parents = {parent for name in known_values if name for parent in _parents(name)}
    return unset if all(_is_apart(name, parents) for name in unset) else []


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _is_apart(name: str, parents: set[str]) -> bool:
    """Return whether `name` lies in a module without any value, outside of numbered layers.

    parents: the modules that have a value.
    """
    part = next((parent for parent in _parents(name) if parent not in parents), None)
    return part is not None and not any(piece.isdigit() for piece in part.split("."))
