"""The search for the adapter's modules, by the base's own names or by those of the running model.

transformers 5 may call a tensor otherwise than checkpoints do, and may hold several stored tensors
in one. An adapter has the names of the model that it was trained on, which may be of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import BaseNames, choose_prefix, join, lacking_in
from lora_export.planning.prefix_change import IDENTITY, PrefixChange
from lora_export.records import Problem
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_export.records import NameTable, Place, TensorRef, Update

    Wanted = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the base that is a part of a parameter of the running model."""

    #: The base's name of the tensor.
    name: str
    #: The row of the parameter's matrix at which the part begins.
    start: int


@dataclass(frozen=True, slots=True)
class Home:
    """Where the base stores one tensor of the running model: whole, or in parts."""

    #: The base's tensors that each hold the whole.
    whole: tuple[str, ...] = ()
    #: The base's tensors that together are the whole.
    parts: tuple[Part, ...] = ()
    #: The shape in the running model, where it is stored in parts.
    shape: tuple[int, ...] = ()
    #: Why the parts cannot be found, else "".
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """A parameter of a module, and where the base stores it."""

    #: The base's name of the module; the running model's name where the base stores parts.
    module: str
    #: The base's tensors that each hold the parameter.
    tensors: tuple[str, ...]
    #: The parameter's shape; () where it is not known.
    shape: tuple[int, ...]
    #: The base's tensors that together hold the parameter.
    parts: tuple[Part, ...] = ()
    #: Why the parts cannot be found, else "".
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Space:
    """Names in which all modules of an adapter were found after one change of prefix."""

    #: The names: the base's, or those of the running model.
    names: BaseNames
    #: The base's tensors by their own names.
    stored: Mapping[str, TensorRef]
    #: From the adapter's names to `names`.
    change: PrefixChange = IDENTITY
    #: Where the base stores the running model's tensors; None where `names` are the base's.
    homes: Mapping[str, Home] | None = None
    #: The running model's names of modules that the adapter calls otherwise.
    renamed: Mapping[str, str] = field(default_factory=dict)

    def locate(self, module: str, parameter: str) -> Located | None:
        """Find the parameter of an adapter's module; None where the base has none."""
        module = self.renamed.get(module, module)
        own, tensors = self.names.locate(module, self.change, parameter)
        if not tensors:
            return None
        if self.homes is None:
            return Located(own, tensors, self._shape(tensors[0]))
        home = self.homes[tensors[0]]
        if home.whole:
            own = home.whole[0].rpartition(".")[0]
            return Located(own, home.whole, self._shape(home.whole[0]))
        return Located(own, (), home.shape, home.parts, home.obstacle)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor; () where only a tie knows the name."""
        return self.stored[name].spec.shape if name in self.stored else ()

    def full_tensor(self, name: str) -> str | None:
        """Return the base's tensor that a full tensor of the adapter replaces."""
        if self.homes is None:
            return None
        known = self.change.apply(name)
        found = self.names.tensor(known) if known is not None else None
        return self.homes[found].whole[0] if found and self.homes[found].whole else None


def wanted_of(updates: Iterable[Update]) -> Mapping[str, Sequence[str]]:
    """List the possible parameters of each module; the base must have one of them.

    A bias is listed only where no weight is adapted: it is found beside the weight.
    """
    listed = list(updates)
    found: dict[str, dict[str, None]] = {}
    for update in [one for one in listed if one.parameter != "bias"] or listed:
        names = found.setdefault(update.module, {})
        names.update(dict.fromkeys(one.parameter for one in update.readings()))
    return {module: list(names) for module, names in found.items()}


def find_space(
    wanted: Wanted,
    base: Space,
    table: Callable[[], NameTable | None],
    only: PrefixChange | None = None,
    advice: str = "",
) -> tuple[Space, list[str], list[Problem]]:
    """Find the names in which every module of an adapter has a tensor.

    The base's own names are tried first, then those of the running model.

    Args:
        wanted: for each module its possible parameters, of which there must be one.
        base: the base's own names.
        table: returns the names of the running model, or None where they are not known.
        only: the change of prefix that the user named.
        advice: how to make the running model's names known; "" where that is not possible.

    Returns:
        (space, choices, problems).
    """
    change, problems = choose_prefix(wanted, base.names, only)
    space = Space(base.names, base.stored, change)
    count = f"resolves all {len(wanted)} modules"
    if not problems:
        return space, [f"{change}, {count}"] if change != IDENTITY else [], []
    known = table()
    if known is None:
        lacking = lacking_in(wanted, change, base.names)
        return space, [], [_unknown(lacking, len(wanted), advice)] if advice else problems
    homes = homes_of(known, base.stored)
    names = BaseNames(homes)
    for renamed in ({}, _renamed(wanted, known)):
        modules = {renamed.get(module, module): found for module, found in wanted.items()}
        change, unresolved = choose_prefix(modules, names, only)
        if not unresolved:
            choice = f"names by the table of {known.source}, {count}"
            choice += f" ({change})" if change != IDENTITY else ""
            return Space(names, base.stored, change, homes, renamed), [choice], []
    return space, [], problems


def renamed_tensors(
    names: Sequence[str], space: Space, table: Callable[[], NameTable | None]
) -> Mapping[str, str]:
    """Find the base's tensors that full tensors called by the running model's names replace.

    names: of full tensors that the base lacks under these names, while it has the modules under
    their own names. Names without a place in the base are left out of the result.
    """
    spelled = {changed: name for name in names if (changed := space.change.apply(name)) is not None}
    known = table() if spelled and space.homes is None else None
    if known is None:
        return {}
    homes = homes_of(known, space.stored)
    places = known.places(spelled)
    found = {name: homes.get(place.name) for name, place in places.items() if place.is_whole}
    return {spelled[name]: home.whole[0] for name, home in found.items() if home and home.whole}


def _unknown(lacking: Sequence[str], count: int, advice: str) -> Problem:
    """Return one problem for all modules whose names may be those of an unknown running model."""
    message = f"{len(lacking)} of {count} modules are not in this base by its own names"
    return Problem(f"{message}: {first_names(lacking)}", hint=advice, cause="fit/no-module")


def _renamed(wanted: Wanted, table: NameTable) -> Mapping[str, str]:
    """Return the running model's names of modules that have older names in an adapter."""
    tensors = {join(module, "weight"): module for module in wanted}
    found = {}
    for name, place in table.places(tensors).items():
        if place.is_whole and place.name.endswith(".weight"):
            found[tensors[name]] = place.name.removesuffix(".weight")
    return found


def homes_of(table: NameTable, stored: Mapping[str, TensorRef]) -> dict[str, Home]:
    """Find where the base stores each tensor of the running model, in the model's own order."""
    by_name: dict[str, dict[str, Place]] = {}
    for name, place in table.places(stored).items():
        if place.name in table.shapes:
            by_name.setdefault(place.name, {})[name] = place
    order = [name for name in table.shapes if name in by_name]
    return {name: _home(by_name[name], table.shapes[name], stored) for name in order}


def _home(
    places: Mapping[str, Place], shape: tuple[int, ...], stored: Mapping[str, TensorRef]
) -> Home:
    if all(place.is_whole for place in places.values()):
        return Home(whole=tuple(places))
    obstacles = [place.obstacle for place in places.values() if place.obstacle]
    if obstacles:
        return Home(shape=shape, obstacle=f"the model makes it by {obstacles[0]}")
    found = {(place.expert, place.part[0]): name for name, place in places.items()}
    experts, rows, *rest = shape if len(shape) == 3 else (0, 0)
    count = next(iter(places.values())).part[1]
    height = rows // count
    wanted = {(expert, part) for expert in range(experts) for part in range(count)}
    fits = all(stored[name].spec.shape == (height, *rest) for name in places)
    if not fits or found.keys() != wanted or len(places) != len(wanted):
        return Home(shape=shape, obstacle=f"{len(places)} tensors do not make {list(shape)}")
    parts = (Part(found[e, p], e * rows + p * height) for e, p in sorted(wanted))
    return Home(parts=tuple(parts), shape=shape)
