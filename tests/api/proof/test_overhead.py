"""What merging saves is counted: held against whole exports with PEFT's own layers in the graph."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_export.api import export_onnx
from lora_export.api.job import planned_job
from lora_export.api.proof import file_proof
from lora_export.checkpoint.output.publish import Staging
from lora_export.execution import digests, stage
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export import export
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file import audit
from lora_export.report.stopwatch import Stopwatch
from lora_export.verification.model import witnesses
from lora_export.verification.runtime import sessions
from lora_export.verification.weights import whole_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48}  # fmt: skip
TEXT = {**SIZES, "vocab_size": 64, "max_position_embeddings": 40}
MASKED = ["input_ids=int64[batch,sequence]<2", "attention_mask=int64[batch,sequence]<2"]


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {**SIZES, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**TEXT))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


CASES = {
    "vit": (vit, ["q_proj", "fc2"], {}, ["pixel_values=float32[batch,3,16,16]"]),
    "bert": (
        bert, ["query", "output.dense"], {}, [*MASKED, "token_type_ids=int64[batch,sequence]<2"],
    ),
    "llama": (
        llama, ["q_proj", "k_proj", "down_proj", "embed_tokens"], {"use_rslora": True}, MASKED,
    ),
}  # fmt: skip
# The function that does the work of each stage, in the order of the stages.
WORK = {
    "plan": (planned_job, "plan_job"),
    "merge": (stage, "write_plan"),
    "proof by weights": (whole_weights, "check_weights"),
    "capture": (export, "capture"),
    "fill and save": (export, "save_model"),
    "proof as a model": (witnesses, "call_witnesses"),
    "static audit": (audit, "audit"),
    "runtime": (sessions, "try_model"),
    "overhead": (file_proof, "saved"),
    "hash": (digests, "hash_files"),
    "publish": (Staging, "publish"),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "llama")]


def watch_stages(monkeypatch):
    """Note the stages that are timed whenever the work of a stage is done."""
    running, right = [], Stopwatch.__call__
    done = {name: [] for name in WORK}

    @contextmanager
    def timed(clock, name, unit=""):
        with right(clock, name, unit) as advance:
            running.append(name)
            yield advance
            running.pop()

    def watched(name, function):
        def work(*arguments, **named):
            done[name].append([*running])
            return function(*arguments, **named)

        return work

    monkeypatch.setattr(Stopwatch, "__call__", timed)
    for name, (module, function) in WORK.items():
        monkeypatch.setattr(module, function, watched(name, getattr(module, function)))
    return done


@pytest.mark.parametrize("case", ["vit", *SLOW])
def test_nodes_and_parameters_are_those_that_a_whole_export_has_beside(case, tmp_path, monkeypatch):
    build, targets, options, inputs = CASES[case]
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=targets, r=4, lora_alpha=6, **options)
    adapted = get_peft_model(copy.deepcopy(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    done = watch_stages(monkeypatch)
    report = export_onnx(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out.onnx")
    assert done == {stage: [[stage]] for stage in WORK}

    live = adapted.eval().base_model.model  # with PEFT's layers in it, under its own forward
    whole = len(capture(live, parse_inputs(inputs)).graph.node)
    factors = [p.numel() for name, p in adapted.named_parameters() if "lora_" in name]
    graph = report.facts["graph"]
    assert graph["saved"] == {"nodes": whole - graph["nodes"], "parameters": sum(factors)}
    assert graph["saved"]["nodes"] >= 4 * len(factors) / 2
    check_stages(report.facts["seconds"])
    manifest = json.loads((tmp_path / "out.onnx.lora_export.json").read_text())
    assert "seconds" not in manifest


def check_stages(seconds):
    """Every stage is timed, and a second counts once: together they take as long as all."""
    *stages, other, total = seconds
    assert [stage for stage in stages if stage != "import torch"] == [*WORK]
    assert (other, total) == ("other", "total")
    assert all(took >= 0 for took in seconds.values())
    assert sum(took for stage, took in seconds.items() if stage != "total") == pytest.approx(
        seconds["total"], abs=1e-6
    )
