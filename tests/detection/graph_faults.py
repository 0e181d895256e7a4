"""What can be wrong with the nodes of an ONNX graph: a table of changes.

Every fault gives, one after the other, changes that it can be; the first that has an effect is
planted. A change is made to a copy of the model, and says in which module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from lora_export.records import example_sizes
from lora_export.verification.blame.graph_modules import read_modules
from lora_export.verification.model.probes import probe_of_sizes
from lora_export.verification.runtime.sessions import open_session, run_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from detection.bench import Bench

    Change = Callable[[onnx.ModelProto], None]


@dataclass
class Anatomy:
    """A right graph: its nodes' modules, and all its values at the traced and at other sizes."""

    bench: Bench
    model: onnx.ModelProto = field(init=False)

    def __post_init__(self) -> None:
        self.model = onnx.load(self.bench.file)

    @cached_property
    def scopes(self) -> dict[str, str]:
        """Node -> module."""
        return dict(read_modules(self.bench.file).scopes)

    @cached_property
    def traced(self) -> dict[str, NDArray[Any]]:
        """Every value at the traced sizes."""
        return self._values({})

    @cached_property
    def grown(self) -> dict[str, NDArray[Any]]:
        """Every value at sizes of which each is another one."""
        return self._values(dict.fromkeys(example_sizes(self.bench.source.inputs), 1))

    def _values(self, more: dict[str, int]) -> dict[str, NDArray[Any]]:
        specs = self.bench.source.inputs
        traced = example_sizes(specs)
        sizes = {name: size + more.get(name, 0) for name, size in traced.items()}
        if more:
            table = {key: size for spec in specs for key, size in spec.spans.items()}
            sizes = {
                name: next((n for n in range(traced[name] + 1, traced[name] + 99)
                            if name not in table or table[name].holds(n)), traced[name])
                for name in traced
            }  # fmt: skip
        names = [name for node in self.model.graph.node for name in node.output if name]
        session = open_session(self.bench.file, level="none", exposing=names)
        return run_session(session, self.bench.file, probe_of_sizes(specs, sizes, 0), names)

    def nodes(self, *kinds: str) -> Iterator[tuple[int, onnx.NodeProto, str]]:
        """(place, node, module) of the nodes of these kinds, or all, from the middle on."""
        found = [
            (at, node, self.scopes[node.name or f"{node.op_type} {at}"])
            for at, node in enumerate(self.model.graph.node)
            if not kinds or node.op_type in kinds
        ]
        middle = len(found) // 2
        yield from (*found[middle:], *reversed(found[:middle]))

    def floats(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of the node that other nodes make, of its output's shape and dtype."""
        made = self.traced.get(node.output[0])
        return [
            name
            for name in node.input
            if made is not None and name in self.traced and _alike(self.traced[name], made)
        ]


def _alike(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and left.dtype.kind == "f" and left.shape == right.shape


@dataclass(frozen=True)
class GraphFault:
    """One change: in which modules, and how."""

    modules: frozenset[str]
    change: Change


def _attribute(anatomy: Anatomy, name: str, wrong: Callable[[Any], Any]) -> Iterator[GraphFault]:
    for at, node, module in anatomy.nodes():
        for place, attribute in enumerate(node.attribute):
            value = onnx.helper.get_attribute_value(attribute)
            if attribute.name != name or wrong(value) == value:
                continue

            def change(model: onnx.ModelProto, at: int = at, place: int = place,
                       value: object = wrong(value)) -> None:  # fmt: skip
                made = onnx.helper.make_attribute(name, value)
                model.graph.node[at].attribute[place].CopyFrom(made)

            yield GraphFault(frozenset({module}), change)


def _other_epsilon(anatomy: Anatomy) -> Iterator[GraphFault]:
    yield from _attribute(anatomy, "epsilon", lambda value: 1e-3)


def _other_axis(anatomy: Anatomy) -> Iterator[GraphFault]:
    """Of what keeps its shape whatever the axis."""
    for at, _, module in anatomy.nodes("Softmax"):

        def change(model: onnx.ModelProto, at: int = at) -> None:
            node = model.graph.node[at]
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axis", -2))

        yield GraphFault(frozenset({module}), change)


def _other_perm(anatomy: Anatomy) -> Iterator[GraphFault]:
    """The last two axes exchanged; mostly, what follows does not fit any more."""

    def wrong(value: list[int]) -> list[int]:
        return [*value[:-2], value[-1], value[-2]]

    yield from _attribute(anatomy, "perm", wrong)


def _node_lost(anatomy: Anatomy) -> Iterator[GraphFault]:
    """A residual, a bias, a scale or an activation that is not applied."""
    kinds = ("Add", "Mul", "Gelu", "Relu", "Tanh", "Softmax", "LayerNormalization", "Sub", "Div")
    for at, node, module in anatomy.nodes(*kinds):
        if inputs := anatomy.floats(node):

            def change(model: onnx.ModelProto, at: int = at, kept: str = inputs[0]) -> None:
                output = model.graph.node[at].output[0]
                left = onnx.helper.make_node("Identity", [kept], [output])
                node = model.graph.node[at]
                del node.input[:], node.attribute[:]
                del node.output[1:]
                node.op_type, node.domain = left.op_type, ""
                node.input.append(kept)

            yield GraphFault(frozenset({module}), change)


_FOR = {"Tanh": "Sigmoid", "Sigmoid": "Tanh", "Relu": "Tanh", "Gelu": "Relu", "Erf": "Tanh",
        "Cos": "Sin", "Sin": "Cos", "Sqrt": "Abs", "Reciprocal": "Abs", "Softmax": "LogSoftmax",
        "Add": "Sub", "Sub": "Add"}  # fmt: skip


def _other_operator(anatomy: Anatomy) -> Iterator[GraphFault]:
    """Activations first."""
    for kind, wrong in _FOR.items():
        for at, node, module in anatomy.nodes(kind):
            if anatomy.traced[node.output[0]].dtype.kind != "f":
                continue

            def change(model: onnx.ModelProto, at: int = at, wrong: str = wrong) -> None:
                model.graph.node[at].op_type = wrong
                if wrong != "LogSoftmax":
                    del model.graph.node[at].attribute[:]

            yield GraphFault(frozenset({module}), change)


def _other_constant(anatomy: Anatomy) -> Iterator[GraphFault]:
    """A number of the model's code that is 1 % larger: a scale, an epsilon, an exponent."""
    graph = anatomy.model.graph
    bound = set(anatomy.bench.weights) | {f"{name}.T" for name in anatomy.bench.weights}
    for place, tensor in enumerate(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind != "f" or tensor.name in bound or not _usual(values):
            continue
        modules = {module for _, node, module in anatomy.nodes() if tensor.name in node.input}

        def change(model: onnx.ModelProto, place: int = place, name: str = tensor.name,
                   values: NDArray[Any] = values) -> None:  # fmt: skip
            wrong = np.asarray(values * 1.01, values.dtype)
            model.graph.initializer[place].CopyFrom(numpy_helper.from_array(wrong, name))

        yield GraphFault(frozenset(modules), change)


def _usual(values: NDArray[Any]) -> bool:
    return bool(values.any() and np.isfinite(values).all() and np.abs(values).max() < 1e6)


def _other_input(anatomy: Anatomy) -> Iterator[GraphFault]:
    """A node that takes an earlier value of the same shape, made by the same kind of node."""
    nodes = list(anatomy.model.graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output}
    for at, node, module in anatomy.nodes("MatMul", "Mul", "Add", "Reshape", "Transpose"):
        for place, name in enumerate(node.input):
            if name not in makers:
                continue
            kind = nodes[makers[name]].op_type
            same = [
                other.output[0]
                for other in nodes[:at]
                if other.op_type == kind
                and other.output[0] not in node.input
                and _alike(anatomy.traced[other.output[0]], anatomy.traced[name])
            ]
            for wrong in same[-1:]:

                def change(model: onnx.ModelProto, at: int = at, place: int = place,
                           wrong: str = wrong) -> None:  # fmt: skip
                    model.graph.node[at].input[place] = wrong

                yield GraphFault(frozenset({module}), change)


def _output_swapped(anatomy: Anatomy) -> Iterator[GraphFault]:
    """The graph gives what another of its nodes makes: of two outputs, each other's."""
    nodes = list(anatomy.model.graph.node)
    outputs = [value.name for value in anatomy.model.graph.output]
    for output in outputs:
        at = next(at for at, node in enumerate(nodes) if output in node.output)
        wanted = anatomy.traced[output]
        found = [
            name
            for node in nodes[:at]
            for name in node.output
            if name in anatomy.traced and _alike(anatomy.traced[name], wanted)
        ]
        for wrong in reversed(found):

            def change(model: onnx.ModelProto, at: int = at, wrong: str = wrong) -> None:
                node = model.graph.node[at]
                del node.input[:], node.attribute[:]
                node.op_type = "Identity"
                node.input.append(wrong)

            module = anatomy.scopes[nodes[at].name]
            yield GraphFault(frozenset({module}), change)


GRAPH_FAULTS: dict[str, Callable[[Anatomy], Iterator[GraphFault]]] = {
    "another epsilon": _other_epsilon,
    "another axis": _other_axis,
    "another permutation": _other_perm,
    "a node lost": _node_lost,
    "another operator": _other_operator,
    "a constant 1 % larger": _other_constant,
    "an input taken from elsewhere": _other_input,
    "an output taken from elsewhere": _output_swapped,
}


def fixed_inputs(anatomy: Anatomy) -> Iterator[tuple[str, GraphFault]]:
    """Every dynamic dimension of the inputs, in turn, as the number it was traced with."""
    for name, size in example_sizes(anatomy.bench.source.inputs).items():

        def change(model: onnx.ModelProto, name: str = name, size: int = size) -> None:
            for value in model.graph.input:
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param == name:
                        dim.dim_value = size

        yield f"{name} is fixed", GraphFault(frozenset({""}), change)


def baked_sizes(anatomy: Anatomy) -> Iterator[GraphFault]:
    """A size that the graph computes, in its place the number that it had when it was traced."""
    for at, node, module in anatomy.nodes("Reshape", "Expand", "Slice", "Range", "ConstantOfShape"):
        for place, name in enumerate(node.input):
            value = anatomy.traced.get(name)
            if value is None or value.dtype != np.int64 or prod(value.shape) > 8:
                continue
            if np.array_equal(value, anatomy.grown[name]):
                continue

            def change(model: onnx.ModelProto, at: int = at, place: int = place,
                       value: NDArray[Any] = value) -> None:  # fmt: skip
                model.graph.initializer.append(numpy_helper.from_array(value, "baked"))
                model.graph.node[at].input[place] = "baked"

            yield GraphFault(frozenset({module}), change)
