"""Captures are shared by tests only where nothing that decides the graph is another."""

from __future__ import annotations

import re
from functools import partial
from itertools import count

import onnx
import pytest
import torch
from torch import nn

from lora_export.errors import InputError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export.capture import (
    dimensions,
    exporters,
    passes,
    trace,
    weights_in_graph,
)
from lora_export.records import Span
from whole_run.shared_captures import SharedCaptures

INPUTS = parse_inputs(["x=float32[batch,4]"])


def double(x):
    return x * 2


class Net(nn.Module):
    def __init__(self, *, scale=1.0, tied=False, outputs=4, constant=0.0, change=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, outputs)
        if tied:
            self.last.weight = self.first.weight
        self.scale, self.change = scale, change
        self.register_buffer("constant", torch.full((4,), constant))

    def forward(self, x):
        hidden = double(self.first(x) * self.scale + self.constant)
        return self.last(self.change(hidden) if self.change else hidden)


def other_class(body):
    """Return a network of a class that is always called the same, with another forward."""

    class Other(nn.Module):
        def forward(self, x):
            return body(x)

    return Other()


def sharing(folder, make=None):
    right = trace.capture.__wrapped__
    shared = SharedCaptures(folder, right, make or right)
    shared.look()
    return shared


@pytest.fixture
def shared(tmp_path):
    """Captures of this test alone; each that is made is told from all others by its name."""
    numbers = count()

    def make(*_, **__):
        return onnx.helper.make_model(onnx.helper.make_graph([], f"{next(numbers)}", [], []))

    return sharing(tmp_path, make)


def name(shared, model, inputs=INPUTS, **settings):
    return shared.capture(model.eval(), inputs, **settings).graph.name


def test_a_shared_graph_is_the_one_that_is_made_anew(tmp_path):
    shared = sharing(tmp_path)
    graphs = [shared.capture(Net().eval(), INPUTS) for _ in range(2)]
    assert shared.counts == {"taken": 1, "kept": 1, "apart": 0}
    assert graphs[0] == graphs[1] == shared.right(Net().eval(), INPUTS)


def test_a_fault_in_the_capture_is_neither_hidden_nor_kept(tmp_path, monkeypatch):
    shared = sharing(tmp_path)
    right = shared.capture(Net().eval(), INPUTS)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "simplify", lambda *_: None)
        faulty = shared.capture(Net().eval(), INPUTS)
    assert len(faulty.graph.node) > len(right.graph.node)
    assert shared.capture(Net().eval(), INPUTS) == right
    assert shared.counts == {"taken": 1, "kept": 1, "apart": 1}


def test_a_network_with_other_weights_takes_the_graph_of_the_first(shared):
    assert name(shared, Net()) == name(shared, Net()) == "0"


def test_a_network_without_weights_has_a_graph_of_its_own(shared):
    """Else a test that compares the two would compare a graph with itself."""
    blank, filled = Net(), Net()
    with torch.no_grad():
        for one in (*blank.parameters(), *list(filled.parameters())[1:]):
            one.zero_()
    assert name(shared, Net()) == name(shared, filled) == "0"
    assert name(shared, blank) == name(shared, blank) == "1"


def test_a_hash_that_every_process_makes_anew_decides_nothing(shared):
    from transformers import GenerationConfig

    nets = []
    for number in range(2):
        nets.append(Net())
        nets[-1].generation_config = GenerationConfig()
        nets[-1].generation_config._original_object_hash = number
    assert [name(shared, net) for net in nets] == ["0", "0"]


@pytest.mark.parametrize(
    "other",
    [
        lambda: Net(scale=2.0),
        lambda: Net(tied=True),
        lambda: Net(outputs=5),
        lambda: Net(constant=1.0),
        lambda: Net(change=torch.relu),
        lambda: Net(change=lambda x: x + 1),
        lambda: Net(change=lambda x: x + 2),
        lambda: Net(change=nn.ReLU()),
        lambda: Net().double(),
        lambda: Net().to("meta"),
        lambda: other_class(torch.relu),
    ],
)
def test_another_network_has_a_graph_of_its_own(shared, other):
    kinds = [Net(), other_class(torch.tanh), Net(change=nn.Tanh()), Net(change=lambda x: x + 3)]
    assert [name(shared, kind) for kind in kinds] == ["0", "1", "2", "3"]
    assert [name(shared, other()) for _ in range(2)] == ["4", "4"]
    assert [name(shared, kind) for kind in kinds] == ["0", "1", "2", "3"]


def test_other_inputs_opsets_and_names_have_graphs_of_their_own(shared):
    made = [
        name(shared, Net()),
        name(shared, Net(), parse_inputs(["x=float32[batch,time,4]"])),
        name(shared, Net(), parse_inputs(["y=float32[batch,4]"])),
        name(shared, Net(), opset=21),
        name(shared, Net(), output_names=["y"]),
        name(shared, Net()),
    ]
    assert made == ["0", "1", "2", "3", "4", "0"]


def test_a_setting_that_is_given_its_usual_value_changes_nothing(shared):
    assert name(shared, Net()) == name(shared, Net(), opset=None, output_names=None) == "0"


def test_what_two_patterns_match_is_told_apart(shared):
    nets = [Net(), Net(), Net()]
    for net, pattern in zip(nets, ("a", "b", "a"), strict=True):
        net.pattern = re.compile(pattern)
    assert [name(shared, net) for net in nets] == ["0", "1", "0"]


def test_what_a_forward_calls_decides(shared, monkeypatch):
    name(shared, Net())
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "double", lambda x: x * 3)
        assert name(shared, Net()) == "1"
    assert name(shared, Net()) == "0"


@pytest.mark.parametrize(
    ("place", "function"),
    [
        (passes, "simplify"),
        (weights_in_graph, "bind"),
        (dimensions, "check"),
        (exporters, "_by_torch"),
        (trace, "_to_proto"),
        (torch.onnx, "export"),
        (nn.Linear, "forward"),
        (torch.nn.functional, "gelu"),
        (Span, "size"),
        (InputError, "of"),
    ],
)
def test_a_patch_of_what_a_capture_runs_is_seen(shared, monkeypatch, place, function):
    name(shared, Net())
    right = getattr(place, function)
    with monkeypatch.context() as patch:
        patch.setattr(place, function, partial(right))
        assert [name(shared, Net()) for _ in range(2)] == ["1", "2"]
    assert name(shared, Net()) == "0"


def test_a_module_that_seems_not_installed_is_seen(shared, monkeypatch):
    import sys

    name(shared, Net())
    monkeypatch.setitem(sys.modules, "transformers.exporters.exporter_onnx", None)
    assert name(shared, Net()) == "1"


def test_a_network_with_a_hook_or_another_forward_is_captured_for_itself(shared):
    name(shared, Net())
    hooked, patched = Net(), Net()
    hooked.last.register_forward_hook(lambda _module, _args, output: output + 1)
    assert [name(shared, hooked) for _ in range(2)] == ["1", "2"]
    right = patched.first.forward
    patched.first.forward = lambda x: right(x) * 5
    assert name(shared, patched) == "3"


def test_a_test_may_capture_for_itself(shared):
    name(shared, Net())
    shared.is_on = False
    assert [name(shared, Net()) for _ in range(2)] == ["1", "2"]


@pytest.mark.own_captures
def test_the_marker_turns_the_sharing_off(run_captures):
    assert not run_captures.is_on
    with run_captures.for_all():
        assert run_captures.is_on == run_captures.is_allowed
    assert not run_captures.is_on


def test_without_the_marker_captures_are_shared(run_captures):
    assert run_captures.is_on == run_captures.is_allowed


def test_a_failure_is_not_kept(shared):
    def fails(*_, **__):
        raise InputError("cannot be traced")

    shared.make = fails
    for _ in range(2):
        with pytest.raises(InputError):
            name(shared, Net())
    assert shared.counts == {"taken": 0, "kept": 0, "apart": 0}
