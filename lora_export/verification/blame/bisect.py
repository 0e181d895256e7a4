"""Finds the first module that goes astray: its inputs agree in two runs, and its output does not.

Both runs are of one probe. One side is a torch model, the other a second torch model or the ONNX
file, some of whose inner values are made outputs for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from lora_export.verification.blame.graph_modules import read_modules
from lora_export.verification.model.compare import distances, largest
from lora_export.verification.model.module_calls import BUDGET, Record, array_of, watching
from lora_export.verification.model.runs import run, run_exact
from lora_export.verification.model.tolerance import EPS, FACTOR
from lora_export.verification.runtime.sessions import open_session, run_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from lora_export.verification.model.module_calls import Arrays, Call
    from lora_export.verification.runtime.sessions import Opener, Optimisation

    Probe = Mapping[str, NDArray[Any]]
    Load = Callable[[], nn.Module]

HIGHEST = 1e30
"""What a ratio is cut to, so that a NaN can be ranked beside a number."""

SURE = 1e4
"""A ratio that no noise has: to look for a larger one first would pass over where it began."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two runs are apart in one call of a module.

    inputs, outputs: the largest distances, in the tensors' own unit. input_ratio, output_ratio: the
    same in units of the rounding noise there. node: what gives the output in the graph.
    """

    module: str
    inputs: float
    outputs: float
    input_ratio: float
    output_ratio: float
    node: str = ""

    def __str__(self) -> str:
        return f"inputs agree to {self.inputs:.1g}, output differs by {self.outputs:.2g}"


def first_diverging(gaps: Sequence[Gap]) -> Gap | None:
    """The first call whose inputs agree and whose output does not; None where all outputs agree.

    The calls are in the order in which they ended, so that the innermost module comes first. The
    limit starts well above noise, where a fault stands out, and falls down to where noise may be.
    """
    worst = max((gap.output_ratio for gap in gaps), default=0.0)
    limit = min(sqrt(FACTOR * worst), SURE)
    while worst > FACTOR:
        for gap in gaps:
            if gap.output_ratio > limit and gap.input_ratio <= max(FACTOR, limit / FACTOR):
                return gap
        if limit <= FACTOR:
            break
        limit = max(FACTOR, limit / FACTOR)
    return None


def compare_models(
    expected: Load,
    noisy: Callable[[nn.Module], Iterable[nn.Module]],
    actual: Load,
    probe: Probe,
    *,
    budget: int = BUDGET,
) -> list[Gap]:
    """The gaps between two torch models, call by call.

    Args:
        expected: builds the model that is right.
        noisy: gives it back in other forms beside float64 (nudged), of which every distance is
            noise; it may change the model.
        actual: builds the other one; the first is dropped before.
        probe: the inputs of both.
        budget: bytes of inputs and outputs that are held at once; beyond, both are run again.
    """
    gaps: list[Gap] = []
    record = Record(budget=budget)
    while True:
        _hold(expected, noisy, probe, record)
        model = actual()
        with watching(model, partial(_compare, record, gaps)):
            run(model, [probe])
        del model
        if not record.full:
            return gaps
        record = Record(record.stop, budget)


def compare_graph(
    expected: Load,
    path: Path,
    probe: Probe,
    *,
    opener: Opener = open_session,
    level: Optimisation = "none",
    budget: int = BUDGET,
) -> list[Gap]:
    """The gaps between a torch model and an ONNX file, call by call.

    Args:
        expected: builds the model that is right.
        path: the file, whose nodes say which module they are of.
        probe: the inputs of both.
        opener: opens the session.
        level: how far the graph is optimised.
        budget: see `compare_models`.

    Raises:
        VerificationError: the file does not load or run.
    """
    modules = read_modules(path)
    session = opener(path, level=level, exposing=modules.boundaries())
    gaps: list[Gap] = []
    record = Record(budget=budget)
    while True:
        _hold(expected, _no_more, probe, record)
        wanted = modules.boundaries({call.module for call in record.held})
        values = run_session(session, path, probe, wanted)
        again = {call.module for call in record.held if call.turn}
        for call, held in record.held.items():
            entering, leaving = modules.faces(call.module, repeated=call.module in again)
            inputs, _ = _nearest(entering, values, held[0], reshaped=True)
            outputs, names = _nearest(leaving, values, held[1])
            if names:
                gap = _gap(call.module, held, record.floors[call], (inputs, outputs))
                gaps.append(replace(gap, node=modules.producers.get(names[0], "")))
        if not record.full:
            return gaps
        record = Record(record.stop, budget)


def compare_sessions(
    path: Path, probe: Probe, level: Optimisation, *, opener: Opener = open_session
) -> Gap | None:
    """The first boundary value that optimisation changes by more than rounding.

    None where all agree: a value that is an output cannot be optimised away, which may be all it
    needed to come out right.
    """
    modules = read_modules(path)
    names = modules.boundaries()
    plain, optimised = (
        run_session(opener(path, level=one, exposing=names), path, probe, names)
        for one in ("none", level)
    )
    gaps = []
    for name in names:
        if plain[name].dtype.kind == "f":
            far = _apart(plain[name], optimised[name])
            ratio = _ratio(far, 0.0, plain[name])
            owner = modules.owner(name)
            gaps.append(Gap(owner, 0.0, far, 0.0, ratio, modules.producers.get(name, "")))
    return first_diverging(gaps)


def _hold(
    expected: Load,
    noisy: Callable[[nn.Module], Iterable[nn.Module]],
    probe: Probe,
    record: Record,
) -> None:
    """Fill the record, and measure the noise of all that it holds."""
    model = expected()
    with watching(model, record):
        run(model, [probe])
    run_exact(model, [probe], lambda: watching(model, partial(_widen, record)))
    for again in noisy(model):
        with watching(again, partial(_widen, record)):
            run(again, [probe])


def _no_more(_: nn.Module) -> Iterable[nn.Module]:
    return ()


def _widen(record: Record, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    if call in record.held:
        for floor, held, seen in zip(
            record.floors[call], record.held[call], (inputs, outputs), strict=True
        ):
            far = _distances(held, seen)
            floor[:] = [max(pair) for pair in zip(floor, far, strict=False)]


def _compare(
    record: Record,
    gaps: list[Gap],
    call: Call,
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> None:
    if call in record.held:
        held = record.held[call]
        far = _distances(held[0], inputs), _distances(held[1], outputs)
        gaps.append(_gap(call.module, held, record.floors[call], far))


def _distances(held: Arrays, seen: Sequence[Tensor]) -> list[float]:
    return [_apart(one, array_of(other)) for one, other in zip(held, seen, strict=False)]


def _apart(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """The largest difference, but where a mask hides what is there.

    What is masked out, torch and a graph may write as different numbers, or one of them not at all;
    what it does to the attention shows in the values that come out of it.
    """
    import numpy as np

    if expected.shape == actual.shape:
        masked = np.isfinite(actual) & (np.abs(actual) >= HIGHEST)
        masked |= np.abs(expected) >= HIGHEST
        actual = np.where(masked, expected, actual)
    return distances({"": expected}, {"": actual})[""].worst


def _gap(
    module: str,
    held: tuple[Arrays, Arrays],
    floors: tuple[list[float], list[float]],
    far: tuple[list[float], list[float]],
) -> Gap:
    ratios = [
        max(map(_ratio, distance, floor, arrays), default=0.0)
        for distance, floor, arrays in zip(far, floors, held, strict=True)
    ]
    inputs, outputs = (max(found, default=0.0) for found in far)
    return Gap(module, inputs, outputs, ratios[0], ratios[1])


def _ratio(far: float, floor: float, held: NDArray[Any]) -> float:
    """A distance in units of noise, as the tolerance of whole outputs counts it."""
    import numpy as np

    seen = np.where(np.abs(held) >= HIGHEST, 0, held)  # without what is masked out
    unit = max(floor, 4 * EPS * largest({"": seen}, ""))
    if far == 0 or not isfinite(unit):
        return 0.0
    return min(far / unit if unit else HIGHEST, HIGHEST)


def _nearest(
    names: Sequence[str],
    values: Mapping[str, NDArray[Any]],
    wanted: Arrays,
    *,
    reshaped: bool = False,
) -> tuple[list[float], list[str]]:
    """For each array the distance of the nearest value of its shape, and that value's name.

    An array of which the graph has none (it was folded away) is passed over: distance 0. reshaped:
    where there is none of its shape, one of as many elements, as two reshapes in a row become one.
    """
    floats = {n: values[n] for n in names if n in values and values[n].dtype.kind == "f"}
    far: list[float] = []
    found: list[str] = []
    for array in wanted:
        like = {name: value for name, value in floats.items() if value.shape == array.shape}
        if reshaped and not like:
            same_size = {name: value for name, value in floats.items() if value.size == array.size}
            like = {name: value.reshape(array.shape) for name, value in same_size.items()}
        same = [(_apart(array, value), name) for name, value in like.items()]
        distance, name = min(same, default=(0.0, ""))
        far.append(distance)
        found += [name] if same else []
    return far, found
