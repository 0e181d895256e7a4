"""What a graph with keys and values may get wrong: each fault, planted into the graph, is seen.

The torch model behind the graph may have the same fault, so only the model of transformers itself
and its own `generate` can tell.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from peft_matrix.architectures import ARCHITECTURES

from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.choose import folder_model
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.verification.model.tolerance import OutputTolerance, Tolerance
from lora_export.verification.runtime.generation import (
    PROMPTS,
    check_generation,
    new_tokens,
    same_tokens,
)
from lora_export.verification.runtime.sessions import open_session

NEAR = Tolerance((OutputTolerance("logits", 2e-6, 2e-6, 2e-6, 5.0, 1.0),))
TOKENS, STEP, PROMPT = (
    "generates as model.generate",
    "each step with a past = plain model",
    "prompt = plain model",
)


class Small:
    """A GPT-2 with its graph; it has a table of positions, so that no shift of them is lost."""

    def __init__(self, folder):
        ARCHITECTURES["gpt2"].save(torch.float32, folder / "base")
        base = read_checkpoint(folder / "base")
        self.source = CachedDecoder(folder_model(base, ()))
        self.plain = self.source.plain.load(base, full={}, untied=())
        model = self.source.load(base, full={}, untied=())
        graph = capture(model, self.source.inputs)
        unused = read_bindings(graph).unused
        weights = {name: one for name, one in model.state_dict().items() if name not in unused}
        save_model(graph, folder / "right.onnx", weights)
        self.graph = onnx.load(folder / "right.onnx")
        self.folder = folder

    def check(self, plant):
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        plant(graph.graph)
        onnx.save(graph, self.folder / "out.onnx")
        path = self.folder / "out.onnx"
        return {
            check.name: check
            for check in check_generation(
                path, self.source, self.plain, NEAR, seed=0, opener=open_session
            )
        }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Small(tmp_path_factory.mktemp("small"))


def swapped(graph, left, right):
    """Whoever reads one input reads the other."""
    other = {left: right, right: left}
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def changed(graph, name, operation, value):
    """Whoever reads the input reads it after an operation with `value`."""
    for node in graph.node:
        node.input[:] = [f"{name}.changed" if one == name else one for one in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array(value), f"{name}.by"))
    node = helper.make_node(operation, [name, f"{name}.by"], [f"{name}.changed"])
    graph.node.insert(0, node)


def exchange_keys_and_values(graph):
    swapped(graph, "past_key_values.1.key", "past_key_values.1.value")


def exchange_layers(graph):
    swapped(graph, "past_key_values.0.key", "past_key_values.1.key")


def drop_the_past(graph):
    changed(graph, "past_key_values.0.value", "Mul", np.float32(0))


def shift_the_positions(graph):
    changed(graph, "position_ids", "Add", np.int64(1))


def look_at_the_padding(graph):
    changed(graph, "attention_mask", "Max", np.int64(1))


def keep_one_new_key(graph):
    """present has the last new key in the place of every new one."""
    first = next(o for o in graph.output if o.name == "present.0.key")
    for node in graph.node:
        node.output[:] = ["unread" if one == first.name else one for one in node.output]
        node.input[:] = ["unread" if one == first.name else one for one in node.input]
    graph.node.append(
        helper.make_node("Concat", ["past_key_values.0.key", "tail"], [first.name], axis=2)
    )
    for name, value in (("from", -1), ("to", 2**31), ("axis", 2)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    last = helper.make_node("Slice", ["unread", "from", "to", "axis"], ["last"])
    shape = helper.make_node("Shape", ["input_ids"], ["width"], start=1)
    tile = helper.make_node("Concat", ["ones", "ones", "width", "ones"], ["often"], axis=0)
    graph.initializer.append(helper.make_tensor("ones", TensorProto.INT64, [1], [1]))
    graph.node.insert(len(graph.node) - 1, last)
    graph.node.insert(len(graph.node) - 1, shape)
    graph.node.insert(len(graph.node) - 1, tile)
    graph.node.insert(len(graph.node) - 1, helper.make_node("Tile", ["last", "often"], ["tail"]))


def test_a_right_graph_passes(small):
    checks = small.check(lambda _: None)
    assert [name for name, check in checks.items() if not check.passed] == []
    assert checks[TOKENS].detail == f"{32 * sum(map(len, PROMPTS))} tokens"


@pytest.mark.parametrize(
    ("plant", "failed"),
    [
        (exchange_keys_and_values, {STEP, TOKENS}),
        (exchange_layers, {STEP, TOKENS}),
        (drop_the_past, {STEP, TOKENS}),
        (shift_the_positions, {PROMPT, STEP, TOKENS}),
        (look_at_the_padding, {PROMPT, STEP, TOKENS}),
        (keep_one_new_key, {STEP, TOKENS}),
    ],
)
def test_a_planted_fault_is_seen(small, plant, failed):
    checks = small.check(plant)
    assert {name for name, check in checks.items() if not check.passed} == failed
    assert "instead of" in checks[TOKENS].detail


def text(best, second, token):
    """One step, where the graph's two best logits are `best` for 0 and `second` for 1."""
    logits = np.array([[[best, second, 0.0]]], np.float32)
    return logits, np.array([[token]])


def test_a_choice_between_equals_is_told_and_no_failure():
    check = same_tokens([text(1.0, 1.0 - 1e-6, 1)], allowed=1e-5)
    assert check.passed
    assert "1 of them a choice between equals" in check.detail


@pytest.mark.parametrize("best", [1.1, np.nan, np.inf])
def test_another_token_is_a_failure(best):
    check = same_tokens([text(best, 1.0, 1)], allowed=1e-5)
    assert not check.passed
    assert check.where == "text 0, row 0, token 0"


@pytest.mark.parametrize(
    ("elements", "most", "count"),
    [
        (10, None, 32),
        (1 << 29, None, 32),
        (1 << 30, None, 16),
        (8 << 30, None, 8),
        (10, 7, 7),
        (8 << 30, 7, 7),
    ],
)
def test_a_large_model_generates_fewer_tokens(elements, most, count):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.empty(elements, device="meta"))
    assert new_tokens(model, most) == count
