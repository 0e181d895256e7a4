"""A planted fault of every stage: the stage and the module that are to blame are named right."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_gpt
import torch
from onnx import numpy_helper
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lora_export.api.graph.making import merged_checkpoint, traced_model
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof.file_proof import prove_file
from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.subject import Subject
from lora_export.onnx_export.export import export
from lora_export.onnx_export.settings import ExportSettings
from lora_export.verification.runtime.sessions import open_session

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@dataclass
class Case:
    """A job carried out once. adapted: a module with an update, in the middle of the model."""

    job: Any
    merged: Any
    source: Any
    exported: Any
    path: Path
    adapted: str
    tensor: str

    def prove(self, path=None, *, merged=None, opener=None):
        return prove_file(
            path or self.path, self.exported, self.job,
            Subject(self.source, self.job.plan, merged or self.merged), opener=opener,
        )  # fmt: skip


def _bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config), ["query", "value"]


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), ["q_proj", "v_proj"]


def _folder(folder, build):
    torch.manual_seed(0)
    model, targets = build()
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, r=4, lora_alpha=6))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", {}


def _factory(folder):
    import loralib as lora

    model = small_gpt.trained()
    state = {k: v.contiguous() for k, v in model.state_dict().items() if "lora_" not in k}
    save_file(state, folder / "base.safetensors")
    torch.save(lora.lora_state_dict(model), folder / "lora.pt")
    model = f"{Path(small_gpt.__file__)}:build"
    return folder / "base.safetensors", folder / "lora.pt", {"model": model}


MAKERS = {
    "factory": (_factory, "blocks.1.c_proj", "blocks.1.c_proj.weight"),
    "bert": (
        lambda folder: _folder(folder, _bert),
        "bert.encoder.layer.1.attention.self.value",
        "",
    ),
    "llama": (lambda folder: _folder(folder, _llama), "model.layers.1.self_attn.q_proj", ""),
}


@pytest.fixture(
    scope="module", params=["factory", "bert", pytest.param("llama", marks=pytest.mark.slow)]
)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make, adapted, tensor = MAKERS[request.param]
    base, adapter, options = make(folder)
    network = Network(options.get("model"))
    job = make_job(base, [adapter], network=network, proof=None, settings={})
    merged = merged_checkpoint(job, folder / "merged")
    source = traced_model(job, merged)
    path = folder / "out.onnx"
    exported = export(Subject(source, job.plan, merged), path, ExportSettings())
    return Case(job, merged, source, exported, path, adapted, tensor or f"{adapted}.weight")


def doctored(case, tmp_path, change):
    """A copy of the file, changed."""
    model = onnx.load(case.path)
    change(model)
    onnx.save(model, tmp_path / "bad.onnx")
    return tmp_path / "bad.onnx"


def slot(case, model):
    """The initializer of the adapted weight."""
    names = {case.tensor, f"{case.tensor}.T"}
    return next(tensor for tensor in model.graph.initializer if tensor.name in names)


def scaled(case, factor=1.01):
    def change(model):
        tensor = slot(case, model)
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def test_what_is_right_is_attributed_to_nobody(case):
    proven = case.prove()
    assert all(check.passed for check in proven.checks)
    assert proven.attribution is None


def test_a_wrong_merge(case, tmp_path):
    """Held as a model alone: the weights' own proof would not let it come that far."""
    folder = tmp_path / "merged"
    place = case.merged.shards[0].file
    shutil.copytree(place.parent, folder)
    tensors = load_file(folder / place.name)
    tensors[case.tensor] = tensors[case.tensor] * 1.01
    save_file(tensors, folder / place.name, metadata={"format": "pt"})
    whole = folder if case.merged.layout == "folder" else folder / place.name
    proven = case.prove(merged=read_checkpoint(whole))
    assert proven.attribution.stage == "merge"
    assert proven.attribution.module == case.adapted
    assert "inputs agree" in proven.attribution.detail


def test_a_wrong_weight_in_the_file(case, tmp_path):
    proven = case.prove(doctored(case, tmp_path, scaled(case)))
    assert proven.attribution.stage == "export"
    assert proven.attribution.module == case.adapted
    assert proven.attribution.node
    assert "elements of" in proven.attribution.detail


def test_a_wrong_operator_in_the_file(case, tmp_path):
    """Only its outputs tell where: the module that uses the weight."""

    def change(model):
        name = slot(case, model).name
        user = next(node for node in model.graph.node if name in node.input)
        at = list(model.graph.node).index(user)
        half = numpy_helper.from_array(np.float32([0.99]), "ninety_nine")
        model.graph.initializer.append(half)
        inner = f"{user.output[0]}_inner"
        node = onnx.helper.make_node("Mul", [inner, "ninety_nine"], [user.output[0]], name="odd")
        node.metadata_props.extend(user.metadata_props)
        user.output[0] = inner
        model.graph.node.insert(at + 1, node)

    proven = case.prove(doctored(case, tmp_path, change))
    assert proven.attribution.stage == "export"
    assert proven.attribution.module == case.adapted
    assert "same graph as the base" in proven.attribution.detail


def test_a_wrong_optimisation(case, tmp_path):
    bad = doctored(case, tmp_path, scaled(case))

    def opener(path, *, level="all", **options):
        wrong = level in ("extended", "all")
        return open_session(bad if wrong else path, level=level, **options)

    proven = case.prove(opener=opener)
    assert proven.attribution.stage == "runtime optimiser"
    assert proven.attribution.module == case.adapted
    assert proven.attribution.node
    assert "'extended'" in proven.attribution.detail


def test_a_fixed_input(case, tmp_path):
    def change(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    proven = case.prove(doctored(case, tmp_path, change))
    assert proven.attribution.stage == "shape specialisation"
    assert case.source.inputs[0].name in proven.attribution.detail


def test_a_size_fixed_inside_the_graph(case, tmp_path):
    """A reshape to the traced sizes: right for these, and no input's dimension shows it."""
    name = case.source.inputs[0].name
    batch, length = case.source.inputs[0].dims

    def change(model):
        sizes = numpy_helper.from_array(np.array([-1, 5]), "fixed")
        model.graph.initializer.append(sizes)
        for node in model.graph.node:
            node.input[:] = ["folded" if one == name else one for one in node.input]
        node = onnx.helper.make_node("Reshape", [name, "fixed"], ["folded"], name="fixing")
        model.graph.node.insert(0, node)

    proven = case.prove(doctored(case, tmp_path, change))
    assert proven.attribution.stage == "shape specialisation"
    assert f"{length} = 7" in proven.attribution.detail
    assert batch in proven.attribution.detail


@pytest.mark.parametrize(
    ("wrong", "fixed"),
    [
        ([{"n": 7}, {"n": 9}], ["n"]),
        ([{"n": 9}], []),  # something long sentences alone bring out, but no size that is fixed
        ([{"n": 3}, {"n": 7}, {"n": 9}], ["n"]),
        ([{"n": 3}], []),
    ],
)
def test_a_fixed_size_is_right_at_no_larger_one(wrong, fixed):
    from lora_export.verification.blame.narrowing import _fixed

    assert _fixed({"n": 5}, [{"n": 3}, {"n": 7}, {"n": 9}], wrong) == fixed


def test_a_fault_while_a_fault_is_looked_for_hides_nothing(case, tmp_path, monkeypatch):
    from lora_export.verification.blame import bisect

    def broken(*_, **__):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(bisect, "compare_graph", broken)
    monkeypatch.setattr(bisect, "compare_sessions", broken)

    def opener(path, *, level="all", **options):
        return open_session(bad if level != "none" else path, level=level, **options)

    bad = doctored(case, tmp_path, scaled(case))
    proven = case.prove(opener=opener)
    assert not all(check.passed for check in proven.checks)
    assert proven.attribution.stage == "unknown"
    assert "a bug of ours" in proven.attribution.detail
