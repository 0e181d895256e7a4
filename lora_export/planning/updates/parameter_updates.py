"""The search for the parameter that an update changes, where the adapter's file names only modules.

A file may hold several updates of one module without the names of their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.layers import Shapes
from lora_export.planning.facts.architecture import CONV1D_LAYERS
from lora_export.planning.updates.readings import readings_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_export.planning.names.locating import Located, Space
    from lora_export.records import NameTable, Update

    Found = tuple[Update, Located]


@dataclass(frozen=True, slots=True)
class Settled:
    """An update of one parameter, and the place of this parameter in the base."""

    update: Update
    located: Located
    #: Whether another parameter of the module is stored (in, out); None where no shape shows it.
    turned: bool | None = None


def settle(
    updates: Sequence[Update], space: Space, table: Callable[[], NameTable | None]
) -> tuple[list[Settled], list[Problem]]:
    """Find the one parameter of every update.

    All updates of a module are settled together, since no two change the same parameter. Existence
    decides first, then the shape. The last resort is the order in which the running model registers
    its parameters: PEFT nests its layers in this order.

    Returns:
        (settled updates, problems of the others).
    """
    groups: dict[str, list[Update]] = {}
    for update in updates:
        groups.setdefault(update.module, []).append(update)
    settled: list[Settled] = []
    problems = []
    for group in groups.values():
        options = [_options(update, space) for update in group]
        found = _assigned(options)
        if found is None and all(options):
            found = _by_order(options, table())
        lacking = [u for u, one in zip(group, options, strict=True) if not one]
        if lacking:
            problems += [_lacking(update) for update in lacking]
        elif found is None:
            problems.append(_unsure(group, options))
        else:
            settled += _with_orientation(found)
    return _with_neighbours(settled), problems


def _options(update: Update, space: Space) -> list[Found]:
    """List the existing parameters that the update may be of; if any fits by shape, only those."""
    located = [(one, space.locate(one.module, one.parameter)) for one in update.readings()]
    level = update.level
    found = [(replace(one, instead=(), level=level), place) for one, place in located if place]
    return [option for option in found if _readings(option)] or found


def _readings(option: Found) -> list[bool]:
    """Return whether the weight is turned, by every reading of the shapes."""
    update, located = option
    shapes = Shapes.of(update.factors, located.shape)
    tuner = update.terms.tuner if update.terms else update.family
    return [reading.fan_in_fan_out for reading in readings_of(tuner, shapes)]


def _assigned(options: Sequence[Sequence[Found]]) -> list[Found] | None:
    """Choose one option for each update, no parameter twice; None where shapes leave several."""
    left = [list(found) for found in options]
    for _ in left:
        only = {found[0][0].parameter for found in left if len(found) == 1}
        left = [
            found if len(found) == 1 else [one for one in found if one[0].parameter not in only]
            for found in left
        ]
    if any(len(found) != 1 for found in left):
        return None
    return [found[0] for found in left]


def _by_order(options: Sequence[Sequence[Found]], table: NameTable | None) -> list[Found] | None:
    """Choose by the model's order of parameters: the last parameter has the outermost layer."""
    if table is None:
        return None
    parameters = {one[0].parameter: one for found in options for one in found}
    module = next(iter(parameters.values()))[1].module
    order = [name.removeprefix(f"{module}.") for name in table.shapes]
    known = [name for name in order if name in parameters]
    if len(known) != len(parameters) or len(known) != len(options):
        return None
    chosen = []
    for found in options:
        name = known[len(known) - 1 - found[0][0].level]
        chosen += [one for one in found if one[0].parameter == name]
    return chosen if len(chosen) == len(options) else None


def _lacking(update: Update) -> Problem:
    message = f"the base has no {update.parameter} for this module, and the adapter updates it"
    hint = "lora_bias needs a layer with a bias: PEFT does not merge it either"
    return Problem(
        message, update.module, hint if update.parameter == "bias" else "", cause="fit/no-module"
    )


def _unsure(group: Sequence[Update], options: Sequence[Sequence[Found]]) -> Problem:
    names = dict.fromkeys(one[0].parameter for found in options for one in found)
    message = (
        f"the file does not show which of {', '.join(list(names)[:5])} its factors belong to: the "
        "order in which the model registers them decides it"
    )
    hint = "with transformers installed (extra hf) the order of its models is known"
    return Problem(message, group[0].module, hint, cause="usage/missing-fact")


def _with_orientation(found: Sequence[Found]) -> Iterable[Settled]:
    """Give all updates of a module the orientation of a stack that is not square.

    PEFT reads all stacks of a module alike.
    """
    readings = [set(_readings(one)) for one in found if len(one[1].shape) == 3]
    sure = {turned for one in readings if len(one) == 1 for turned in one}
    turned = sure.pop() if len(sure) == 1 else None
    return [Settled(update, located, turned) for update, located in found]


def _with_neighbours(settled: Sequence[Settled]) -> list[Settled]:
    """Give square matrices the orientation of others of the same name that are not square.

    All layers that transformers has as Conv1D count as one name.
    """
    by_name: dict[str, set[bool]] = {}
    matrices = {id(one): _sort(one) for one in settled if len(one.located.shape) == 2}
    for one in settled:
        readings = set(_readings((one.update, one.located))) if id(one) in matrices else set()
        if len(readings) == 1:
            by_name.setdefault(matrices[id(one)], set()).update(readings)
    sure = {name: found.pop() for name, found in by_name.items() if len(found) == 1}
    return [
        replace(one, turned=sure.get(matrices[id(one)])) if id(one) in matrices else one
        for one in settled
    ]


def _sort(one: Settled) -> str:
    """Return the layer's name; one name for all layers that transformers has as Conv1D."""
    name = one.update.module.rpartition(".")[2]
    return "Conv1D" if name in CONV1D_LAYERS else name
