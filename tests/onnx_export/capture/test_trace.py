from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

from lora_export.errors import InputError, UsageError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export.capture.dimensions import differences
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.verification.model.compare import distance
from lora_export.verification.model.probes import make_probes
from lora_export.verification.runtime.sessions import run_model

pytestmark = pytest.mark.own_captures
MODELS = ("net", "gpt", "bert", "roberta", "llama", "gpt2")


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_the_model_does_on_sizes_not_traced(zoo, tmp_path, name):
    case = zoo.captured(name)
    save_model(case.proto(), tmp_path / "model.onnx", {})
    outputs = run_model(tmp_path / "model.onnx", case.probes())
    assert [tuple(one) for one in outputs] == [case.output_names] * 2
    for expected, actual in zip(case.expected(), outputs, strict=True):
        assert distance(expected, actual).worst < zoo.rounding


@pytest.mark.parametrize("name", MODELS)
def test_inputs_outputs_and_dimensions_have_the_declared_names(zoo, name):
    case = zoo.captured(name)
    proto = case.proto()
    assert differences(proto, case.specs) == []
    assert [value.name for value in proto.graph.input] == [spec.name for spec in case.specs]
    assert tuple(value.name for value in proto.graph.output) == case.output_names
    first = proto.graph.output[0].type.tensor_type.shape.dim[0]
    assert first.dim_param == "batch"
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 20


@pytest.mark.parametrize("name", MODELS)
def test_no_trace_of_the_tracing_machine_is_left(zoo, name):
    data = zoo.captured(name).data
    for trace in (b"stack_trace", b"fx_node", b"site-packages", b".py", b"graph_signature", b"s72"):
        assert trace not in data
    proto = zoo.captured(name).proto()
    assert not proto.functions
    assert not any(node.doc_string for node in proto.graph.node)
    # A fault is bisected to a module by these.
    assert b"pkg.torch.onnx.name_scopes" in data


def test_capturing_says_nothing(zoo, capfd):
    capture(zoo.build("net"), zoo.specs("net"))
    assert capfd.readouterr() == ("", "")
    for name in MODELS:
        zoo.captured(name)  # which asserts the same of the capture that it keeps
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", MODELS)
def test_capturing_does_not_change_the_model(zoo, name):
    model, fresh = zoo.captured(name).model, zoo.build(name).state_dict()
    assert "forward" not in vars(model)
    assert inspect.ismethod(model.forward)
    assert all(torch.equal(fresh[key], value) for key, value in model.state_dict().items())
    assert getattr(getattr(model, "config", None), "use_cache", True)


def test_without_transformers_exporter_torchs_own_is_used(zoo, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers.exporters.exporter_onnx", None)
    model, specs = zoo.build("gpt2"), zoo.specs("gpt2")
    zoo.save(model, specs, tmp_path / "model.onnx")
    for probe in make_probes(specs, 3):
        [actual] = run_model(tmp_path / "model.onnx", [probe])
        assert distance(zoo.run_torch(model, probe), actual).worst < zoo.rounding


class Returns(nn.Module):
    """Returns what `make` makes of the input and the weight."""

    def __init__(self, make):
        super().__init__()
        self.output = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.make = make

    def forward(self, x):
        return self.make(x, self.output)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x, w: x * w, ["output"]),
        (lambda x, w: (x * w, x + w), ["output_0", "output_1"]),
        (lambda x, w: {"a": x * w, "b": [x + w, None, (x - w,)]}, ["a", "b_0", "b_2_0"]),
        (lambda x, w: {"a": {"deep": x * w}}, ["a.deep"]),
        (lambda x, w: {"x": x, "y": x * w}, ["output.x", "y"]),
        (lambda x, w: {"y": x * w, "weight": w}, ["y", "weight"]),
        (lambda x, w: dict.fromkeys(["y", "again"], x * w), ["y", "again"]),
        (lambda x, w: {"output": x * w, "mul": x + w}, ["output", "mul"]),
    ],
)
def test_outputs_are_named_after_what_the_model_returns(zoo, tmp_path, make, names):
    model, specs = Returns(make).eval(), parse_inputs(["x=float32[batch,4]"])
    proto = zoo.save(model, specs, tmp_path / "model.onnx")
    assert [value.name for value in proto.graph.output] == names
    [probe, _] = make_probes(specs, 0)
    [actual] = run_model(tmp_path / "model.onnx", [probe])
    assert distance(zoo.run_torch(model, probe), actual).worst < 1e-6


def test_outputs_can_be_named(zoo):
    model = Returns(lambda x, w: (x * w, x + w)).eval()
    specs = parse_inputs(["x=float32[batch,4]"])
    proto = capture(model, specs, output_names=["times", "plus"])
    assert [value.name for value in proto.graph.output] == ["times", "plus"]
    for wrong in (["times"], ["times", "times"]):
        with pytest.raises(UsageError, match="output names for the outputs output_0, output_1"):
            capture(model, specs, output_names=wrong)


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_asked_for_is_the_opset_written(zoo, opset):
    proto = capture(zoo.build("net"), zoo.specs("net"), opset=opset)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [opset]


def test_an_opset_that_cannot_be_written_is_refused(zoo):
    with pytest.raises(UsageError, match="opset 18 or newer, not 8"):
        capture(zoo.build("net"), zoo.specs("net"), opset=8)


@pytest.mark.parametrize("opset", [-1, 6, 1000])
def test_an_opset_that_nobody_knows_is_refused_before_anything_is_read(opset, tmp_path):
    from lora_export.api import export_onnx

    with pytest.raises(UsageError, match=f"no opset {opset}"):
        export_onnx(tmp_path / "absent", [tmp_path / "absent"], tmp_path / "x.onnx", opset=opset)


class Untranslatable(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Untranslatable(), "traced the model but cannot translate .*svd"),
        (Untraceable(), "cannot trace the model: "),
    ],
)
def test_tracing_and_translating_fail_apart(model, words):
    with pytest.raises(InputError, match=words):
        capture(model.eval(), parse_inputs(["x=float32[batch,4,4]"]))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.hoard = self.layer.weight.data

    def forward(self, x):
        return nn.functional.linear(x, self.hoard)


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight.data)


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Two(nn.Module):
    def forward(self, a, b):
        return a + b


class Fixing(nn.Module):
    def forward(self, x):
        return x.reshape(8)[: x.shape[0]] if x.shape[0] == 2 else x


@pytest.mark.parametrize(
    ("model", "inputs", "error", "match"),
    [
        (Plain, ["x=float32[batch,4]"], InputError, "layer.weight: is used .* as a plain tensor"),
        (Inside, ["x=float32[batch,4]"], InputError, "as a plain tensor"),
        (Branching, ["x=float32[batch,4]"], InputError, "torch cannot trace .*data-dependent"),
        (Fixing, ["x=float32[batch,4]"], InputError, "torch cannot trace"),
        (Two, ["a=float32[batch,4]"], UsageError, "cannot be called with .*'b'"),
        (Two, ["a=float32[batch,4]", "c=float32[4]"], UsageError, "forward has no parameter c"),
        (Two, ["a=float32[n,4]", "b=float32[m,4]"], UsageError, "cannot be called with"),
        (lambda: Returns(lambda *_: "text"), ["x=float32[4]"], InputError, "returns a str"),
        (lambda: Returns(lambda *_: None), ["x=float32[4]"], InputError, "returns no tensor"),
        (lambda: Returns(lambda *_: 3), ["x=float32[4]"], InputError, "returns a int"),
    ],
)
def test_models_that_cannot_be_captured_are_refused_in_one_sentence(
    capfd, model, inputs, error, match
):
    with pytest.raises(error, match=match) as caught:
        capture(model().eval(), parse_inputs(inputs))
    assert caught.value.problems[0].hint or caught.value.problems[0].where
    assert "Traceback" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_in_training_mode_is_refused(zoo):
    with pytest.raises(UsageError, match="training mode"):
        capture(zoo.build("net").train(), zoo.specs("net"))


def test_inputs_are_passed_by_position_when_no_name_is_a_parameter(zoo):
    proto = capture(zoo.build("net"), parse_inputs(["picture=float32[batch,1,8,8]"]))
    assert proto.graph.input[0].name == "picture"


def test_tied_names_share_an_initializer_and_unused_weights_are_told(zoo):
    bindings = read_bindings(zoo.captured("gpt").proto()).parameters
    assert bindings["head.weight"] == bindings["wte.weight"]
    unused = read_bindings(zoo.captured("net").proto()).unused
    assert set(unused) == {"dead.weight", "dead.bias", "norm.num_batches_tracked"}


def test_importing_the_package_does_not_import_torch():
    rooms = [
        "capture.trace", "capture.passes",
        "file.audit", "file.bindings", "file.save", "file.topology",
    ]  # fmt: skip
    code = "import sys\n" + "".join(f"import lora_export.onnx_export.{room}\n" for room in rooms)
    code += (
        "import lora_export.verification.model.probes, lora_export.verification.runtime.sessions\n"
    )
    code += "import lora_export.verification.model.tolerance\n"
    code += "print({'torch', 'onnx', 'numpy', 'onnxruntime', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
