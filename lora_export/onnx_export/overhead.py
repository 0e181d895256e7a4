"""How many nodes of a captured layer belong to its live branch: what merging saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.onnx_export.trace import capture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch import nn

    from lora_export.records import InputSpec


def count_extra_nodes(
    layer: nn.Module, inputs: Sequence[InputSpec], *, plain: str, live: str
) -> int:
    """Capture a layer with both outputs; nodes that `live` needs more than `plain`.

    Raises:
        InputError, UsageError: see trace.capture.
    """
    graph = capture(layer, inputs).graph
    return len(_behind(graph, live)) - len(_behind(graph, plain))


def _behind(graph: onnx.GraphProto, output: str) -> set[int]:
    """The places of the nodes that an output depends on."""
    made = {name: at for at, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    waiting = [output]
    while waiting:
        at = made.get(waiting.pop())
        if at is not None and at not in found:
            found.add(at)
            waiting += graph.node[at].input
    return found
