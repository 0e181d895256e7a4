"""ONNX of every architecture of the matrix, from its folder alone: no input is described.

What the file says its dimensions are is held against a table here, and sizes are run that neither
the tracer nor the proof has used.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from peft_matrix.warned import WHILE_SAVING, ignored

from lora_export.api import export_onnx, verify
from lora_export.errors import UsageError

pytestmark = ignored(WHILE_SAVING)

TEXT = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
TYPED = {**TEXT, "token_type_ids": ["batch", "sequence"]}
PIXELS = {"pixel_values": ["batch", 3, 16, 16]}
ANSWER = {"decoder_input_ids": ["batch", "answer"]}
LOGITS = {"logits": ["batch", "sequence", 96]}
CLASSES = {"logits": ["batch", 3]}
# What goes in, what comes out; of the outputs, those that users ask for.
FACES = {
    "bert": (TYPED, CLASSES),
    "bert encoder": (TYPED, {"logits": ["batch", 2]}),
    "roberta": (TYPED, CLASSES),
    "distilbert": (TEXT, CLASSES),
    "albert": (TYPED, CLASSES),
    "gpt2": (TEXT, LOGITS),
    "gpt-neox": (TEXT, LOGITS),
    "llama": (TEXT, LOGITS),
    "llama tied": (TEXT, LOGITS),
    "qwen3": (TEXT, LOGITS),
    "gemma3": (TEXT, LOGITS),
    "mixtral": (TEXT, LOGITS),
    "t5": ({**TEXT, **ANSWER}, {"logits": ["batch", "answer", 96]}),
    "vit": (PIXELS, CLASSES),
    "clip": (
        {**TEXT, **PIXELS},
        {"logits_per_image": ["batch", "batch"], "text_embeds": ["batch", 32]},
    ),
    "whisper": (
        {"input_features": ["batch", 8, 24], **ANSWER},
        {"logits": ["batch", "answer", 96], "encoder_last_hidden_state": ["batch", 12, 32]},
    ),
    "wav2vec2": (
        {"input_values": ["batch", "samples"]},
        {"logits": ["batch", "((samples - 5)//4)", 96]},
    ),
    # Its code takes images out of a batch one by one, which fixes their number.
    "llava": (
        {"input_ids": [1, "sequence"], "attention_mask": [1, "sequence"],
         "pixel_values": [1, 3, 16, 16]},
        {"logits": [1, "sequence", 96]},
    ),
}  # fmt: skip
# Here in every run; GPT-2 is, below.
FEW = ("wav2vec2",)
CASES = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]
UNSEEN = {"batch": 4, "sequence": 12, "answer": 10, "samples": 117}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name, folder, layers=None):
    architecture = ARCHITECTURES[name]
    if layers is not None:
        architecture = architecture.with_layers(layers)
    architecture.save(torch.float32, folder / "base")
    make_adapter(architecture, OPTIONS["plain"], folder / "base", folder / "adapter")
    return folder / "base", folder / "adapter"


@pytest.mark.parametrize("name", CASES)
def test_exported_from_its_folder_alone(name, tmp_path):
    base, adapter = made(name, tmp_path)
    report = export_onnx(base, [adapter], tmp_path / "out.onnx")

    assert "ONNX Runtime = unmerged" in {check.name for check in report.checks}
    model = onnx.load(tmp_path / "out.onnx")
    inputs, outputs = FACES[name]
    assert {value.name: dims(value) for value in model.graph.input} == inputs
    found = {value.name: dims(value) for value in model.graph.output}
    assert {key: found.get(key) for key in outputs} == outputs
    runs_at_other_sizes(tmp_path / "out.onnx", inputs, outputs)


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def runs_at_other_sizes(path, inputs, outputs):
    random = np.random.default_rng(3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {}
    for name, shape in inputs.items():
        size = [UNSEEN.get(dim, dim) for dim in shape]
        if name in ("pixel_values", "input_features", "input_values"):
            feed[name] = random.standard_normal(size).astype(np.float32)
        else:
            feed[name] = np.ones(size, np.int64)
    if "pixel_values" in inputs and 1 in inputs["pixel_values"]:
        feed["input_ids"][:, :4] = 95
    for (name, shape), array in zip(outputs.items(), session.run([*outputs], feed), strict=True):
        wanted = [28 if str(dim).startswith("(") else UNSEEN.get(dim, dim) for dim in shape]
        assert list(array.shape) == wanted, name


def test_every_architecture_has_a_face():
    assert FACES.keys() == ARCHITECTURES.keys()


def test_another_head_by_task(tmp_path):
    base, adapter = made("gpt2", tmp_path, layers=1)
    path = tmp_path / "out.onnx"
    export_onnx(base, [adapter], path, task="feature-extraction")
    outputs = [value.name for value in onnx.load(path).graph.output]
    assert outputs == ["last_hidden_state"]
    again = verify(path, base=base, adapters=[adapter])
    assert again.passed
    assert "task feature-extraction" in " ".join(again.warnings)


def test_a_head_that_the_checkpoint_lacks(tmp_path):
    base, adapter = made("gpt2", tmp_path, layers=1)
    with pytest.raises(Exception, match="holds no value for it") as caught:
        export_onnx(base, [adapter], tmp_path / "out.onnx", task="text-classification")
    assert [problem.where for problem in caught.value.problems] == ["score.weight"]
    assert "GPT2ForSequenceClassification" in str(caught.value)


def test_a_task_of_another_kind_of_model(tmp_path):
    base, adapter = made("gpt2", tmp_path, layers=1)
    with pytest.raises(UsageError, match="'gpt2' for image-classification") as caught:
        export_onnx(base, [adapter], tmp_path / "out.onnx", task="image-classification")
    assert "text-generation" in caught.value.problems[0].hint
