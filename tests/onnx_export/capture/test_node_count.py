"""A capture is no larger than what torch's own optimiser makes of the same traced model.

Two differences are meant and counted apart. torch's optimiser computes from the weights' values
what can be (1 + weight, a weight's norm, a second, transposed copy of an embedding that is the
output head as well); we keep those nodes, so that the graph holds for the weights of any adapter,
and ONNX Runtime computes them once, when it loads the file. Attention with a mask of numbers (T5
adds its positions to it) answers zeros for a row masked throughout, as it does everywhere with a
mask of booleans; torch's own export has a guard for the latter only.
"""

from __future__ import annotations

import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES

from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.network.calling import without_cache
from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture import dimensions
from lora_export.onnx_export.capture.exporters import _flat_forward
from lora_export.onnx_export.capture.trace import _examples, capture

CLAIMED = ("bert", "llama", "gpt2", "vit", "t5", "gemma3")
"""Of every way to write attention, a mask, tied weights and norms in the matrix."""

BY_DEFAULT = {"vit"}
"""The cheapest to trace: it has no mask."""
GUARDS = {"t5": 6 + 3 * 4}
"""Of attentions, and of the masks that they share; the others have none."""


def by_torch(model, specs):
    program = torch.onnx.export(
        model, (), kwargs=_examples(specs), dynamo=True, optimize=True, verbose=False,
        dynamic_shapes=dimensions.dynamic_shapes(specs),
    )  # fmt: skip
    return len(program.model.graph)


def of_weights_alone(proto):
    """Nodes that compute from weights and constants alone, each counted once."""
    known = {tensor.name for tensor in proto.graph.initializer}
    count = 0
    for node in proto.graph.node:
        inputs = [name for name in node.input if name]
        if inputs and known.issuperset(inputs):
            known |= set(node.output)
            count += 1
    return count


def guards(proto):
    """Where(Less(ReduceSum(Cast(Greater(mask, least))), 1), 0, attention): each node once."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    found = set()
    for node in proto.graph.node:
        chain = [node]
        for op_type in ("Less", "ReduceSum", "Cast", "Greater"):
            source = makers.get(chain[-1].input[0])
            if node.op_type == "Where" and source is not None and source.op_type == op_type:
                chain.append(source)
        if len(chain) == 5:
            found |= {one.output[0] for one in chain}
    return len(found)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in BY_DEFAULT else pytest.mark.slow) for n in CLAIMED],
)
def test_our_graph_is_no_larger_than_torchs_optimised_one(name, tmp_path):
    ARCHITECTURES[name].save(torch.float32, tmp_path)
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    # With weights: torch's optimiser looks at them, and of zeros it would merge whole layers.
    model = source.load(base, full={}, untied=())
    specs = source.inputs
    proto = capture(model, specs)
    with quiet(), without_cache(model), _flat_forward(model, specs):
        optimised = by_torch(model, specs)
    assert len(proto.graph.node) <= optimised + of_weights_alone(proto) + guards(proto)
    assert guards(proto) == GUARDS.get(name, 0)
