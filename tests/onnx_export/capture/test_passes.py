from __future__ import annotations

import re
import sys

import pytest
import torch

from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture import passes
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.file.topology import describe
from lora_export.verification.model.compare import distance
from lora_export.verification.runtime.sessions import run_model


def degenerate(model):
    """Weights that a value-dependent optimiser merges, drops or folds."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            elif "wpe" in name or "position" in name:
                rows = torch.arange(parameter.shape[0], dtype=parameter.dtype)
                parameter.copy_(rows[:, None].expand_as(parameter) / 100)
            else:
                parameter.fill_(0.01)
    return model


@pytest.mark.own_captures
@pytest.mark.parametrize("name", ["net", "gpt", pytest.param("bert", marks=pytest.mark.slow)])
def test_the_graph_does_not_depend_on_the_values_of_the_weights(zoo, name):
    case = zoo.captured(name)
    other = capture(degenerate(zoo.build(name, seed=7)), case.specs)
    assert describe(other) == describe(case.proto())
    assert read_bindings(other) == read_bindings(case.proto())


def test_torchs_own_optimiser_depends_on_them(zoo):
    """The reason for all this; when it stops being so, the passes can go."""
    args = (torch.ones(2, 1, 8, 8),)
    counts = []
    for model in (zoo.build("net"), degenerate(zoo.build("net"))):
        with quiet():
            program = torch.onnx.export(model, args, dynamo=True, optimize=True, verbose=False)
        counts.append(len(program.model.graph.initializers))
    assert counts[0] != counts[1]


@pytest.mark.parametrize("name", ["net", "gpt", pytest.param("bert", marks=pytest.mark.slow)])
def test_the_graph_is_as_small_as_torchs_optimiser_makes_it(zoo, name):
    case = zoo.captured(name)
    ours, theirs = len(case.proto().graph.node), optimised_size(zoo, name)
    # net: batch norm stays beside its convolution; gpt: the tied head's one transposition stays.
    assert ours - theirs == {"net": 1, "gpt": 1, "bert": 0}[name]


def optimised_size(zoo, name):
    from lora_export.models.network.calling import without_cache
    from lora_export.onnx_export.capture import dimensions
    from lora_export.onnx_export.capture.trace import _examples

    model, specs = zoo.build(name), zoo.specs(name)
    with quiet(), without_cache(model):
        program = torch.onnx.export(
            model, (), kwargs=_examples(specs), dynamo=True, optimize=True, verbose=False,
            dynamic_shapes=dimensions.dynamic_shapes(specs),
        )  # fmt: skip
    return len(program.model.graph)


def test_only_transposed_weights_change_their_name(zoo):
    for name in ("net", "gpt", "bert", "llama"):
        proto = zoo.captured(name).proto()
        present = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
        for parameter, binding in read_bindings(proto).parameters.items():
            assert binding.initializer in present
            if binding.perm:
                assert binding.initializer == f"{parameter}.T"
        assert not any(re.search(r"_orig|\.value$", one) for one in present)


def test_no_transposition_of_a_weight_is_left_but_of_shared_ones(zoo):
    for name, expected in {"net": 0, "bert": 0, "llama": 0, "gpt": 1, "gpt2": 1}.items():
        proto = zoo.captured(name).proto()
        weights = {one.initializer for one in read_bindings(proto).parameters.values()}
        left = [n for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] in weights]
        assert len(left) == expected, name


@pytest.mark.parametrize("name", ["net", "gpt"])
def test_without_onnxscripts_private_passes_the_plain_graph_serves(
    zoo, monkeypatch, tmp_path, name
):
    monkeypatch.setitem(sys.modules, "onnxscript.optimizer._constant_folding", None)
    monkeypatch.delattr("onnxscript.optimizer._constant_folding")
    assert passes._passes() is None
    case = zoo.captured(name)
    graph = capture(case.model, case.specs)
    assert len(graph.graph.node) > len(case.proto().graph.node)
    other = zoo.build(name, seed=3)
    save_model(graph, tmp_path / "model.onnx", zoo.weights_of(other, graph))
    actual = run_model(tmp_path / "model.onnx", case.probes())
    for left, right in zip(case.expected(other), actual, strict=True):
        assert distance(left, right).worst < zoo.rounding
