"""Which values of an ONNX graph enter and leave which module of the torch model it was traced from.

torch's exporter writes a node's path of modules into its metadata, which the passes keep.
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


@dataclass(frozen=True, slots=True)
class GraphModules:
    """The modules of a graph, by their path; the root's is empty.

    entering, leaving: values that a module takes from outside and gives to it, in the order of the
    graph; those of all its calls, where it is called more than once. producers: a value's node, by
    name. scopes: a node's innermost module. users: an initializer's nodes.
    """

    entering: Mapping[str, Sequence[str]]
    leaving: Mapping[str, Sequence[str]]
    producers: Mapping[str, str]
    scopes: Mapping[str, str]
    users: Mapping[str, Sequence[str]]

    def boundaries(self, modules: Collection[str] | None = None) -> list[str]:
        """All values that enter or leave these modules (default: any), in the graph's order."""
        chosen = {*self.entering, *self.leaving} if modules is None else modules
        wanted = {
            name
            for module in chosen
            for name in (*self.entering.get(module, ()), *self.leaving.get(module, ()))
        }
        return [name for name in self.producers if name in wanted]

    def faces(self, module: str, *, repeated: bool) -> tuple[Sequence[str], Sequence[str]]:
        """(values that may enter the module, values that may leave it).

        repeated: it is called several times. What one call gives to the next one never leaves it,
        and is found among all that its modules exchange.
        """
        entering, leaving = self.entering.get(module, ()), self.leaving.get(module, ())
        if not repeated:
            return entering, leaving
        known = {*self.entering, *self.leaving}
        inner = self.boundaries({one for one in known if one.startswith(f"{module}.")})
        return [*entering, *inner], [*leaving, *inner]

    def owner(self, value: str) -> str:
        """The innermost module of the node that gives the value."""
        return self.scopes.get(self.producers.get(value, ""), "")


def read_modules(path: Path) -> GraphModules:
    """Read the modules of an ONNX file; empty paths where its nodes do not say theirs."""
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
    """What a node uses, also in its subgraphs."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from _taken(inner)


def _scopes(
    graph: onnx.GraphProto, made: Mapping[str, int], used: Mapping[str, Sequence[int]]
) -> list[str]:
    """Every node's module; where a rewrite has made it, the one that holds all its neighbours."""
    said = [_said(node) for node in graph.node]
    scopes = []
    for at, node in enumerate(graph.node):
        scope = said[at]
        if scope is None:
            before = [made[name] for name in node.input if name in made]
            after = [user for name in node.output for user in used[name]]
            near = [said[other] for other in (*before, *after)]
            scope = _common([path for path in near if path is not None])
        scopes.append(scope)
    return scopes


def _said(node: onnx.NodeProto) -> str | None:
    """The path in the node's metadata: a list of modules from the root, and the operator."""
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
    """The innermost module that holds all of these."""
    shared = [set(_ancestors(path)) for path in paths]
    return max(set.intersection(*shared), key=len) if shared else ""


def _ancestors(path: str) -> Iterator[str]:
    """The module and all that it lies in, the root among them."""
    yield ""
    parts = path.split(".") if path else []
    for depth in range(len(parts)):
        yield ".".join(parts[: depth + 1])
