"""What can be wrong with the weights in an ONNX file whose graph is right: a table.

Every fault gives the path of the wrong file and the modules that are hit; None where an
architecture has no room for it.
"""

from __future__ import annotations

import shutil
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import onnx
import torch

from detection.planting import changed_modules
from detection.weight_faults import WEIGHT_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from detection.bench import Bench


class WrongFile(NamedTuple):
    """A file and the modules whose weights or nodes are wrong in it."""

    path: Path
    modules: set[str]


# Those of the merge that filling and storing can commit as well.
_OF_FILLING = ("scaling 0.5 % too large", "update transposed", "module skipped", "block shifted",
               "through fp16", "through bf16", "row zeroed", "another adapter",
               "last bits cut off", "one element off", "untouched weight changed")  # fmt: skip


def _filled_wrongly(fault: str, bench: Bench, name: str) -> WrongFile | None:
    changes = WEIGHT_FAULTS[fault](bench, name)
    if changes is None:
        return None
    wrong = bench.doctored(changes)
    return WrongFile(bench.filled(_bound(bench, bench.loads(wrong))), changed_modules(bench, wrong))


def _bound(bench: Bench, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name in bench.weights}


def _swapped(bench: Bench, name: str) -> WrongFile | None:
    """Two weights of the model's middle, of one shape."""
    weights = bench.weights
    pairs = [
        (one, two)
        for one, two in combinations([n for n in weights if n.endswith(".weight")], 2)
        if weights[one].shape == weights[two].shape
        and not torch.equal(weights[one], weights[two])
        and _owner(one) != _owner(two)
    ]
    if not pairs:
        return None
    one, two = pairs[len(pairs) // 2]
    path = bench.filled({**weights, one: weights[two], two: weights[one]})
    return WrongFile(path, {_owner(one), _owner(two)})


def _bias_lost(bench: Bench, name: str) -> WrongFile | None:
    biases = [n for n, value in bench.weights.items() if n.endswith(".bias") and value.any()]
    if not biases:
        return None
    chosen = biases[len(biases) // 2]
    wrong = {**bench.weights, chosen: torch.zeros_like(bench.weights[chosen])}
    return WrongFile(bench.filled(wrong), {_owner(chosen)})


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _of_base(bench: Bench) -> dict[str, Tensor]:
    model = bench.source.load(
        bench.job.plan.base, full=bench.job.plan.full_tensors(), untied=bench.job.plan.separated
    )
    return _bound(bench, model.state_dict())


def _of_other(bench: Bench) -> dict[str, Tensor]:
    return _bound(bench, bench.loads(bench.doctored(bench.other)))


def _stale(
    make: Callable[[Bench], dict[str, Tensor]],
    bench: Bench,
    name: str,
) -> WrongFile:
    """The data of an earlier export beside the new graph, under its name."""
    state = make(bench)
    [old] = bench.filled(state, external=True).parent.glob("*.data")
    folder = _copy(bench)
    [new] = folder.glob("*.data")
    shutil.copyfile(old, new)
    return WrongFile(folder / "out.onnx", _different(bench, state))


def _different(bench: Bench, state: Mapping[str, Tensor]) -> set[str]:
    weights = bench.weights
    return {_owner(name) for name in weights if not torch.equal(state[name], weights[name])}


def _copy(bench: Bench) -> Path:
    folder = bench.place() / "copy"
    shutil.copytree(bench.external.parent, folder)
    return folder


def _place_of(tensor: onnx.TensorProto, key: str) -> onnx.StringStringEntryProto:
    return next(entry for entry in tensor.external_data if entry.key == key)


def _adapted_slots(bench: Bench, model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The external initializers of adapted modules, by module."""
    found = {}
    for module in bench.places.values():
        for tensor in model.graph.initializer:
            if tensor.name in {f"{module}.weight", f"{module}.weight.T"} and tensor.external_data:
                found[module] = tensor
    return found


def _moved(by: int, bench: Bench, name: str) -> WrongFile | None:
    """One tensor is looked for a little further on."""
    folder = _copy(bench)
    model = onnx.load(folder / "out.onnx", load_external_data=False)
    module = bench.places[name]
    tensor = _adapted_slots(bench, model).get(module)
    if tensor is None:
        return None
    offset = _place_of(tensor, "offset")
    offset.value = str(int(offset.value) + by)
    onnx.save(model, folder / "out.onnx")
    return WrongFile(folder / "out.onnx", {module})


def _offsets_exchanged(bench: Bench, name: str) -> WrongFile | None:
    folder = _copy(bench)
    model = onnx.load(folder / "out.onnx", load_external_data=False)
    slots = _adapted_slots(bench, model)
    module = bench.places[name]
    same = [n for n, t in slots.items() if n != module and t.dims == slots[module].dims]
    if not same:
        return None
    left, right = (_place_of(slots[one], "offset") for one in (module, same[0]))
    left.value, right.value = right.value, left.value
    onnx.save(model, folder / "out.onnx")
    return WrongFile(folder / "out.onnx", {module, same[0]})


def _cut_short(bench: Bench, name: str) -> WrongFile:
    folder = _copy(bench)
    [data] = folder.glob("*.data")
    data.write_bytes(data.read_bytes()[:-64])
    model = onnx.load(folder / "out.onnx", load_external_data=False)
    last = max(
        (tensor for tensor in model.graph.initializer if tensor.external_data),
        key=lambda tensor: int(_place_of(tensor, "offset").value),
    )
    return WrongFile(folder / "out.onnx", {_owner(last.name.removesuffix(".T"))})


FILE_FAULTS: dict[str, Callable[[Bench, str], WrongFile | None]] = {
    **{fault: partial(_filled_wrongly, fault) for fault in _OF_FILLING},
    "two initializers swapped": _swapped,
    "bias lost": _bias_lost,
    "stale external data of the base": partial(_stale, _of_base),
    "stale external data of another adapter": partial(_stale, _of_other),
    "offset 4 bytes further": partial(_moved, 4),
    "offset a page further": partial(_moved, 4096),
    "two offsets exchanged": _offsets_exchanged,
    "external data cut short": _cut_short,
}
