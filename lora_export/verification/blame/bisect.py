"""Compares two runs module by module: the first with equal inputs and another output is at fault.

Both runs are of one probe. One side is a torch model. The other is a second torch model, or the
ONNX file with some of its inner values as outputs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.verification.blame.gap import (
    Gap,
    first_diverging,
    gap_of,
    in_noise,
    unmasked_distance,
)
from lora_export.verification.blame.graph_modules import read_modules
from lora_export.verification.model.module_calls import BUDGET, Record, array_of, watching
from lora_export.verification.model.runs import run, run_exact
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


def compare_models(
    expected: Load,
    noisy: Callable[[nn.Module], Iterable[nn.Module]],
    actual: Load,
    probe: Probe,
    *,
    budget: int = BUDGET,
) -> list[Gap]:
    """Return the gaps between two torch models, call by call.

    Args:
        expected: builds the model that is right.
        noisy: yields that model in further forms, whose distance from it is noise by definition. It
            may change the model. The distance of float64 is always measured.
        actual: builds the other model, after the first is dropped.
        probe: the inputs of both.
        budget: bytes of inputs and outputs in memory at once. If a model has more, both are run
            again for the rest.

    Raises:
        UsageError: a model cannot be run.
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
    budget: int = BUDGET,
) -> list[Gap]:
    """Return the gaps between a torch model and an ONNX file, call by call.

    Args:
        expected: builds the model that is right.
        path: the file; its nodes have the paths of their modules in their metadata.
        probe: the inputs of both.
        opener: opens the session.
        budget: see `compare_models`.

    Raises:
        VerificationError: the file does not load or run.
        UsageError: the torch model cannot be run.
    """
    modules = read_modules(path)
    # Without optimisation: an optimiser may fuse away the values between two modules.
    session = opener(path, level="none", exposing=modules.boundaries())
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
                gap = gap_of(call.module, held, record.floors[call], (inputs, outputs))
                gaps.append(replace(gap, node=modules.producers.get(names[0], "")))
        if not record.full:
            return gaps
        record = Record(record.stop, budget)


def compare_sessions(
    path: Path, probe: Probe, level: Optimisation, *, opener: Opener = open_session
) -> Gap | None:
    """Find the first value between two modules that optimisation changes by more than rounding.

    It is None if all values agree, although the file's outputs do not. The compared values are
    outputs here. The runtime cannot fuse them away, and that alone may avoid the fault.

    Raises:
        VerificationError: the file does not load or run.
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
            far = unmasked_distance(plain[name], optimised[name])
            ratio = in_noise(far, 0.0, plain[name])
            owner = modules.owner(name)
            gaps.append(Gap(owner, 0.0, far, 0.0, ratio, modules.producers.get(name, "")))
    return first_diverging(gaps)


def _hold(
    expected: Load,
    noisy: Callable[[nn.Module], Iterable[nn.Module]],
    probe: Probe,
    record: Record,
) -> None:
    """Fill the record, and measure the rounding noise of every recorded tensor."""
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
        gaps.append(gap_of(call.module, held, record.floors[call], far))


def _distances(held: Arrays, seen: Sequence[Tensor]) -> list[float]:
    return [unmasked_distance(one, array_of(other)) for one, other in zip(held, seen, strict=False)]


def _nearest(
    names: Sequence[str],
    values: Mapping[str, NDArray[Any]],
    wanted: Arrays,
    *,
    reshaped: bool = False,
) -> tuple[list[float], list[str]]:
    """Return for each array the distance of the nearest value of its shape, and the values' names.

    An array that the graph does not have, because it was folded away, has distance 0 and no name.

    reshaped: if no value has an array's shape, take one with as many elements. An exporter makes
        one reshape of two in a row.
    """
    floats = {n: values[n] for n in names if n in values and values[n].dtype.kind == "f"}
    far: list[float] = []
    found: list[str] = []
    for array in wanted:
        like = {name: value for name, value in floats.items() if value.shape == array.shape}
        if reshaped and not like:
            same_size = {name: value for name, value in floats.items() if value.size == array.size}
            like = {name: value.reshape(array.shape) for name, value in same_size.items()}
        same = [(unmasked_distance(array, value), name) for name, value in like.items()]
        distance, name = min(same, default=(0.0, ""))
        far.append(distance)
        found += [name] if same else []
    return far, found
