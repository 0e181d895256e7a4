"""Finds the values of an ONNX graph that enter and leave each module of the traced torch model.

torch's exporter writes a node's path of modules into its metadata. The passes keep it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""The key of a node's metadata: a list of modules from the root, and the operator's name."""


@dataclass(frozen=True, slots=True)
class GraphModules:
    """The modules of a graph, by their path; the root's is empty."""

    entering: Mapping[str, Sequence[str]]
    """The values that a module takes from outside, in all its calls, in the graph's order."""
    leaving: Mapping[str, Sequence[str]]
    """The values that a module gives to the outside, in all its calls, in the graph's order."""
    producers: Mapping[str, str]
    """The name of the node that computes a value, in the graph's order."""
    scopes: Mapping[str, str]
    """The innermost module of a node, by the node's name."""
    users: Mapping[str, Sequence[str]]
    """The names of the nodes that use an initializer."""

    def boundaries(self, modules: Collection[str] | None = None) -> list[str]:
        """Return the values that enter or leave these modules (default: any), in graph order."""
        chosen = {*self.entering, *self.leaving} if modules is None else modules
        wanted = {
            name
            for module in chosen
            for name in (*self.entering.get(module, ()), *self.leaving.get(module, ()))
        }
        return [name for name in self.producers if name in wanted]

    def faces(self, module: str, *, repeated: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return the values that may enter the module, and those that may leave it.

        repeated: the module is called several times. A value that one call gives to the next does
            not leave the module, so the values between its inner modules are candidates as well.
        """
        entering, leaving = self.entering.get(module, ()), self.leaving.get(module, ())
        if not repeated:
            return entering, leaving
        known = {*self.entering, *self.leaving}
        inner = self.boundaries({one for one in known if one.startswith(f"{module}.")})
        return [*entering, *inner], [*leaving, *inner]

    def owner(self, value: str) -> str:
        """Return the innermost module of the node that computes the value."""
        return self.scopes.get(self.producers.get(value, ""), "")


def read_modules(path: Path) -> GraphModules:
    """Read the modules of an ONNX file, without its external data.

    A node has the empty path if neither its metadata nor its neighbours give one.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    made = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    used: dict[str, list[int]] = defaultdict(list)
    for at, node in enumerate(graph.node):
        for name in _taken(node):
            used[name].append(at)
    scopes = _scopes(graph, made, used)
    results = {value.name for value in graph.output}
    entering: dict[str, list[str]] = defaultdict(list)
    leaving: dict[str, list[str]] = defaultdict(list)
    for value, at in made.items():
        own = set(_ancestors(scopes[at]))
        others = [set(_ancestors(scopes[user])) for user in used[value]]
        for module in sorted(own):
            if value in results or any(module not in other for other in others):
                leaving[module].append(value)
        for module in sorted(set().union(*others) - own):
            entering[module].append(value)
    names = [node.name or f"{node.op_type} {at}" for at, node in enumerate(graph.node)]
    initializers = [tensor.name for tensor in graph.initializer]
    return GraphModules(
        entering,
        leaving,
        {value: names[at] for value, at in made.items()},
        dict(zip(names, scopes, strict=True)),
        {name: [names[at] for at in used[name]] for name in initializers},
    )


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node uses, also in its subgraphs."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from _taken(inner)


def _scopes(
    graph: onnx.GraphProto, made: Mapping[str, int], used: Mapping[str, Sequence[int]]
) -> list[str]:
    """Return every node's innermost module.

    A node that a rewrite has made has no path. It belongs to the module around all its neighbours.
    """
    recorded = [_recorded_path(node) for node in graph.node]
    scopes = []
    for at, node in enumerate(graph.node):
        scope = recorded[at]
        if scope is None:
            before = [made[name] for name in node.input if name in made]
            after = [user for name in node.output for user in used[name]]
            near = [recorded[other] for other in (*before, *after)]
            scope = _common([path for path in near if path is not None])
        scopes.append(scope)
    return scopes


def _recorded_path(node: onnx.NodeProto) -> str | None:
    """Read the path of the innermost module from the node's metadata; None if it has none."""
    text = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if text is None:
        return None
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    path = [str(part) for part in listed[:-1]] if isinstance(listed, list) else []
    return path[-1] if path and path[0] == "" else ""


def _common(paths: Sequence[str]) -> str:
    """Return the path of the innermost module around all of these."""
    shared = [set(_ancestors(path)) for path in paths]
    return max(set.intersection(*shared), key=len) if shared else ""


def _ancestors(path: str) -> Iterator[str]:
    """Yield the paths of the root, of every module around this one, and of this one."""
    yield ""
    parts = path.split(".") if path else []
    for depth in range(len(parts)):
        yield ".".join(parts[: depth + 1])
