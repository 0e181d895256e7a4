"""All faults as one table of cases, each of which plants and judges one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import onnx

from detection.file_faults import FILE_FAULTS, WrongFile
from detection.graph_faults import GRAPH_FAULTS, Anatomy, baked_sizes, fixed_inputs
from detection.optimiser_faults import OPTIMISER_FAULTS, refusing_from, wrong_from
from detection.planting import SEEN, file_effect, judge_file, judge_merge, judge_runtime
from detection.weight_faults import WEIGHT_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from detection.bench import Bench
    from detection.graph_faults import GraphFault
    from detection.planting import Outcome

TRIES = 8
"""Places that are tried for a change of the graph, until one has an effect."""


@dataclass(frozen=True)
class Case:
    """A fault by its kind and name; `turn` chooses among the adapted weights."""

    kind: str
    name: str
    turn: int

    def judge(self, bench: Bench, anatomy: Anatomy) -> Outcome | None:
        """Plant and judge it; None where the architecture has no room for it."""
        return _KINDS[self.kind](self, bench, anatomy)


def _merge(case: Case, bench: Bench, _: Anatomy) -> Outcome | None:
    changes = WEIGHT_FAULTS[case.name](bench, _tensor(case, bench))
    return None if changes is None else judge_merge(bench, case.name, changes)


def _file(case: Case, bench: Bench, _: Anatomy) -> Outcome | None:
    wrong = FILE_FAULTS[case.name](bench, _tensor(case, bench))
    return None if wrong is None else judge_file(bench, case.name, wrong.path, wrong.modules)


def _graph(case: Case, bench: Bench, anatomy: Anatomy) -> Outcome | None:
    wrong = _visible(bench, anatomy, GRAPH_FAULTS[case.name](anatomy))
    return None if wrong is None else judge_file(bench, case.name, wrong.path, wrong.modules)


def _input(case: Case, bench: Bench, anatomy: Anatomy) -> Outcome | None:
    fixed = next(islice(fixed_inputs(anatomy), case.turn, None), None)
    if fixed is None:
        return None
    name, fault = fixed
    wrong = _planted(bench, anatomy, fault)
    return judge_file(bench, name, wrong.path, wrong.modules, "shape specialisation")


def _size(case: Case, bench: Bench, anatomy: Anatomy) -> Outcome | None:
    found = [*baked_sizes(anatomy)]
    part = len(found) * case.turn // 3
    wrong = _visible(bench, anatomy, found[part:])
    if wrong is None:
        return None
    return judge_file(bench, case.name, wrong.path, wrong.modules, "shape specialisation")


def _optimiser(case: Case, bench: Bench, anatomy: Anatomy) -> Outcome | None:
    fault = OPTIMISER_FAULTS[case.name]
    if fault.of == "refusal":
        _, node, module = next(anatomy.nodes("MatMul", "Gemm"))
        opener = refusing_from(fault.level, node.name)
        return judge_runtime(bench, case.name, opener, float("inf"), {module})
    wrong = (
        _visible(bench, anatomy, GRAPH_FAULTS[fault.of](anatomy))
        if fault.of in GRAPH_FAULTS
        else FILE_FAULTS[fault.of](bench, _tensor(case, bench))
    )
    if wrong is None or (effect := file_effect(bench, wrong.path)) <= SEEN:
        return None
    return judge_runtime(
        bench, case.name, wrong_from(fault.level, wrong.path), effect, wrong.modules
    )


def _tensor(case: Case, bench: Bench) -> str:
    return bench.adapted[case.turn % len(bench.adapted)]


def _visible(bench: Bench, anatomy: Anatomy, faults: Iterable[GraphFault]) -> WrongFile | None:
    """The first of several faults that the outputs show: one without an effect is none."""
    for fault in islice(faults, TRIES):
        wrong = _planted(bench, anatomy, fault)
        if file_effect(bench, wrong.path) > SEEN:
            return wrong
    return None


def _planted(bench: Bench, anatomy: Anatomy, fault: GraphFault) -> WrongFile:
    model = onnx.ModelProto()
    model.CopyFrom(anatomy.model)
    fault.change(model)
    path = bench.place() / "out.onnx"
    onnx.save(model, path)
    return WrongFile(path, set(fault.modules))


_KINDS: dict[str, Callable[[Case, Bench, Anatomy], Outcome | None]] = {
    "merge": _merge,
    "file": _file,
    "graph": _graph,
    "input": _input,
    "size": _size,
    "optimiser": _optimiser,
}
_NAMES: dict[str, Iterable[str]] = {
    "merge": WEIGHT_FAULTS,
    "file": FILE_FAULTS,
    "graph": GRAPH_FAULTS,
    "input": [f"dimension {at} is fixed" for at in range(3)],
    "size": [f"size {at} is a number" for at in range(3)],
    "optimiser": OPTIMISER_FAULTS,
}
CASES = [
    Case(kind, name, turn) for kind, names in _NAMES.items() for turn, name in enumerate(names)
]
