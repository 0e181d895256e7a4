"""The number of nodes that live branches add to captured layers, which merging saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.onnx_export.capture.trace import capture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch import nn

    from lora_export.records import InputSpec


def count_extra_nodes(layers: nn.Module, inputs: Sequence[InputSpec]) -> list[int]:
    """Count the nodes that each layer needs more when its branch is live.

    Args:
        layers: verification.model.live_layer.LiveLayers, which computes every layer with its
            branch and without.
        inputs: one a layer.

    Returns:
        the difference in nodes, one a layer.

    Raises:
        InputError, UsageError: see trace.capture.
    """
    graph = capture(layers, inputs).graph
    made = {name: at for at, node in enumerate(graph.node) for name in node.output}
    return [
        len(_behind(graph, made, f"live_{at}")) - len(_behind(graph, made, f"plain_{at}"))
        for at in range(len(inputs))
    ]


def _behind(graph: onnx.GraphProto, made: dict[str, int], output: str) -> set[int]:
    """Find the places in the graph of the nodes that an output depends on."""
    found: set[int] = set()
    waiting = [output]
    while waiting:
        at = made.get(waiting.pop())
        if at is not None and at not in found:
            found.add(at)
            waiting += graph.node[at].input
    return found
