"""A capture is no larger than what torch's own optimiser makes of the same model.

It may be larger by the guard that transformers' exporter puts around attention to rows that are
masked throughout, in whose place torch's own has another.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES

from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import UsageError
from lora_export.models.calling import FAILURES, without_cache
from lora_export.models.huggingface import HuggingFaceModel
from lora_export.models.quiet import quiet
from lora_export.onnx_export import dimensions
from lora_export.onnx_export.trace import _examples, _flat_forward, capture

BY_DEFAULT = {"bert"}
GUARD = 3


def by_torch(model, specs):
    program = torch.onnx.export(
        model, (), kwargs=_examples(specs), dynamo=True, optimize=True, verbose=False,
        dynamic_shapes=dimensions.dynamic_shapes(specs),
    )  # fmt: skip
    return len(program.model.graph)


def by_transformers(model, specs):
    exporter = import_module("transformers.exporters.exporter_onnx")
    config = exporter.OnnxConfig(dynamic_shapes=dimensions.dynamic_shapes(specs), optimize=True)
    program = exporter.OnnxExporter().export_program(model, _examples(specs), config)[0]
    return len(program.graph)


def size(way, model, specs):
    """The nodes of the optimised export, or None where this way cannot export the model."""
    with quiet(), without_cache(model), _flat_forward(model, specs):
        try:
            return way(model, specs)
        except FAILURES:
            return None


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in BY_DEFAULT else pytest.mark.slow) for n in ARCHITECTURES],
)
def test_our_graph_is_no_larger_than_torchs_optimised_one(name, tmp_path):
    ARCHITECTURES[name].save(torch.float32, tmp_path)
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    # With weights: torch's optimiser looks at them, and of zeros it would merge whole layers.
    model = source.load(base, full={}, untied=())
    try:
        specs = source.inputs
    except UsageError:
        pytest.skip("its inputs have no usual names")
    torchs, optimised = (size(way, model, specs) for way in (by_torch, by_transformers))
    if torchs is None and optimised is None:
        pytest.skip("without our passes nobody can export it")
    ours = len(capture(model, specs).graph.node)
    assert optimised is None or ours <= optimised, (ours, optimised)
    assert torchs is None or ours <= torchs + GUARD, (ours, torchs)
