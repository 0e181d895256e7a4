"""Encoder-decoders as two graphs that answer step by step, and faults of what goes between them."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
import torch
import transformers as hf
from documents import blocks
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from safetensors.torch import save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import UsageError, VerificationError
from lora_export.models.choose import folder_model
from lora_export.models.generation.cached_pair import CachedPair, _signature
from lora_export.verification.model.probes import make_probes
from lora_export.verification.model.tolerance import OutputTolerance, Tolerance
from lora_export.verification.runtime.encoder_decoder import check_answers
from lora_export.verification.runtime.generation_loss import STEPS
from lora_export.verification.runtime.sessions import open_session

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing` is deprecated:FutureWarning",
        "Model (has|with) `tie_word_embeddings=True`:UserWarning",
    )
]
NEAR = Tolerance((OutputTolerance("logits", 2e-6, 2e-6, 2e-6, 5.0, 1.0),))
TOKENS, STEP = "generates as model.generate", "each step with a past = plain model"
PROVEN = {
    "ONNX Runtime = merged", "ONNX Runtime = unmerged", STEP, TOKENS,
    "encoder_model: same graph as the base", "decoder_model: every weight bit-equal",
}  # fmt: skip


def bart():
    return hf.BartConfig(
        vocab_size=96, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip


def made(name, folder):
    base, adapter = folder / "base", folder / "adapter"
    if name in ARCHITECTURES:
        ARCHITECTURES[name].save(torch.float32, base)
        make_adapter(ARCHITECTURES[name], OPTIONS["plain"], base, adapter)
        return base, adapter
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = hf.BartForConditionalGeneration(bart())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(adapter)
    return base, adapter


class Spoken:
    """A Whisper as two graphs, with the merged model that they stand for."""

    def __init__(self, folder):
        self.base, self.adapter = made("whisper", folder)
        self.out = folder / "out"
        self.report = export_onnx(self.base, [self.adapter], self.out, kv_cache=True)
        merge(self.base, [self.adapter], folder / "merged", verify=False)
        merged = read_checkpoint(folder / "merged")
        self.pair = CachedPair(folder_model(merged, ()))
        self.plain = self.pair.plain.load(merged, full={}, untied=())

    def check(self, folder):
        probes = make_probes(self.pair.inputs, seed=0)
        found = check_answers(folder, self.pair, self.plain, NEAR, probes, opener=open_session)
        return {check.name: check for check in found}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return Spoken(tmp_path_factory.mktemp("whisper"))


def test_its_faces(spoken):
    assert {check.name for check in spoken.report.checks} >= PROVEN
    assert spoken.report.facts["stored_twice"] == 0
    assert sorted(path.name for path in spoken.out.iterdir()) == [
        "decoder_model.onnx", "encoder_model.onnx", "lora_export.json",
    ]  # fmt: skip
    encoder, decoder = (
        onnx.load(spoken.out / f"{n}_model.onnx").graph for n in ("encoder", "decoder")
    )
    assert dims(encoder.input) == {"input_features": ["batch", 8, 24]}
    crossed = {f"{layer}.encoder.{part}": ["batch", 4, 12, 8] for layer, part in PLACES}
    said = {f"{layer}.decoder.{part}": ["batch", 4, "past", 8] for layer, part in PLACES}
    longer = {key: ["batch", 4, "past + answer", 8] for key in said}
    assert dims(encoder.output) == {
        "last_hidden_state": ["batch", 12, 32],
        **{f"present.{key}": value for key, value in crossed.items()},
    }
    assert dims(decoder.input) == {
        "decoder_input_ids": ["batch", "answer"],
        **{f"past_key_values.{key}": value for key, value in {**crossed, **said}.items()},
    }
    assert dims(decoder.output) == {
        "logits": ["batch", "answer", 96],
        **{f"present.{key}": value for key, value in longer.items()},
    }


PLACES = [(layer, part) for layer in (0, 1) for part in ("key", "value")]


def dims(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_right_graphs_pass(spoken):
    checks = spoken.check(spoken.out)
    assert all(check.passed for check in checks.values())
    assert checks[TOKENS].detail == "60 tokens"  # its table of positions ends there


@pytest.mark.parametrize(
    ("file", "left", "right"),
    [
        ("decoder", "past_key_values.1.encoder.key", "past_key_values.1.encoder.value"),
        ("decoder", "past_key_values.0.decoder.key", "past_key_values.1.decoder.key"),
        ("encoder", "present.0.encoder.value", "present.1.encoder.value"),
    ],
)
def test_two_that_are_exchanged_are_seen(spoken, tmp_path, file, left, right):
    shutil.copytree(spoken.out, tmp_path / "out")
    path = tmp_path / "out" / f"{file}_model.onnx"
    model = onnx.load(path)
    other = {left: right, right: left}
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
        node.output[:] = [other.get(name, name) for name in node.output]
    onnx.save(model, path)
    checks = spoken.check(tmp_path / "out")
    assert not checks[STEP].passed
    assert not checks[TOKENS].passed


def test_the_loop_of_the_documentation(spoken, root):
    """It answers what model.generate does; the end stops it."""
    page = root / "docs" / "onnx.md"
    [code] = [b.text for b in blocks(page) if b.language == "python" and "answers" in b.text]
    sound = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(3))
    names = {"folder": str(spoken.out), "inputs": {"input_features": sound.numpy()},
             "start": 3, "eos": -1, "new_tokens": 6}  # fmt: skip
    exec(compile(code, "docs/onnx.md", "exec"), names)
    said = torch.full((2, 1), 3)
    for _ in range(6):
        logits = spoken.plain(input_features=sound, decoder_input_ids=said, use_cache=False).logits
        said = torch.cat([said, logits[:, -1:].argmax(-1)], dim=1)
    assert names["answers"].tolist() == said.tolist()
    names["eos"] = said[0, 1].item()
    names["inputs"] = {"input_features": sound[:1].numpy()}
    exec(compile(code, "docs/onnx.md", "exec"), names)
    assert names["answers"].tolist() == [[3, names["eos"]]]


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_a_text_is_taken_by_an_encoder_without_weights(name, tmp_path):
    config = {
        "t5": ARCHITECTURES["t5"].config,
        "bart": bart,
        "marian": lambda: hf.MarianConfig(**{
            **bart().to_dict(), "pad_token_id": 95, "decoder_start_token_id": 95,
        }),
    }[name]()  # fmt: skip
    kinds = {"t5": "T5ForConditionalGeneration", "marian": "MarianMTModel"}
    config.architectures = [kinds.get(name, "BartForConditionalGeneration")]
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    pair = CachedPair(folder_model(read_checkpoint(tmp_path), ()))
    assert {spec.name for spec in pair.parts()["encoder_model"].inputs} == {
        "input_ids", "attention_mask",
    }  # fmt: skip


SMALL = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}


def trocr():
    """A TrOCR that reads 16 x 16 pixels."""
    image = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = hf.TrOCRConfig(**SMALL, vocab_size=96, max_position_embeddings=40)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, text)
    config.decoder_start_token_id, config.pad_token_id = 2, 1
    torch.manual_seed(0)
    model = hf.VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def test_an_encoder_of_images_takes_its_pixels():
    model = trocr()
    assert [*_signature(model, model.get_encoder()).parameters] == ["pixel_values"]


@pytest.mark.slow
def test_a_text_is_read_from_an_image(tmp_path):
    trocr().save_pretrained(tmp_path / "base")
    module = "decoder.model.decoder.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A": torch.randn(4, 32), f"{module}.lora_B": torch.randn(32, 4)}
    torch.save(factors, tmp_path / "lora.pt")
    given = {"kv_cache": True, "alpha": 4, "fan_in_fan_out": False}
    report = export_onnx(tmp_path / "base", [tmp_path / "lora.pt"], tmp_path / "out", **given)
    assert {check.name for check in report.checks} >= PROVEN


def test_sounds_of_any_length_have_no_two_graphs(tmp_path):
    config = hf.Speech2TextConfig(
        **SMALL, vocab_size=96, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48,
        max_source_positions=200, max_target_positions=40, input_feat_per_channel=8,
        conv_channels=16, decoder_start_token_id=2,
    )  # fmt: skip
    config.architectures = ["Speech2TextForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="shortens sounds of any length"):
        CachedPair(folder_model(read_checkpoint(tmp_path), ()))


def test_one_file_has_no_place_for_two(spoken, tmp_path):
    with pytest.raises(UsageError, match="a folder of two files") as caught:
        export_onnx(spoken.base, [spoken.adapter], tmp_path / "x.onnx", kv_cache=True)
    assert caught.value.problems[0].hint == f"-o {tmp_path / 'x'}"


LOWER = [
    "int8",
    *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "int8-weights", "int4")),
]


@pytest.mark.parametrize("precision", LOWER)
def test_a_lower_precision_of_both_files(spoken, precision, tmp_path):
    report = export_onnx(
        spoken.base, [spoken.adapter], tmp_path / "out", kv_cache=True, precision=precision
    )
    names = {check.name for check in report.checks}
    assert {STEP, TOKENS, f"{precision}: nearer to merged than to base"} <= names
    told = report.facts["lowered"]
    losses = {loss["output"]: loss for loss in told["loss"]}
    assert losses.keys() == {"encoder_last_hidden_state", "logits", STEPS}
    assert losses[STEPS]["places"] == 60
    assert losses[STEPS]["agree"] >= 45
    assert all(loss["rms"] < 0.5 * loss["effect"] for loss in losses.values() if loss["effect"])
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.onnx")]
    assert len(sizes) == 2
    assert sum(sizes) == told["bytes"]
    if precision != "fp16":
        assert any(name.startswith("encoder_model: ") for name in told["rounded"])
        assert any(name.startswith("decoder_model: ") for name in told["rounded"])
    recorded = json.loads((tmp_path / "out" / "lora_export.json").read_text())["onnx"]
    assert (recorded["precision"], recorded["loss"]) == (precision, told["loss"])
    assert verify(tmp_path / "out").passed
    again = verify(tmp_path / "out", base=spoken.base, adapters=[spoken.adapter])
    assert again.facts["lowered"]["loss"] == told["loss"]


def test_a_fault_in_one_of_two_lowered_files_is_caught(spoken, tmp_path):
    given = {"kv_cache": True, "precision": "int4"}
    export_onnx(spoken.base, [spoken.adapter], tmp_path / "out", verify=False, **given)
    (tmp_path / "out" / "lora_export.json").unlink()
    lost = shutil.copytree(tmp_path / "out", tmp_path / "lost")
    (lost / "encoder_model.onnx").unlink()
    with pytest.raises(VerificationError, match="encoder_model: "):
        verify(lost, base=spoken.base, adapters=[spoken.adapter], **given)
    path = tmp_path / "out" / "decoder_model.onnx"
    stray = shutil.copy(path, tmp_path / "out" / "decoder_model_merged.onnx")
    with pytest.raises(VerificationError, match=r"decoder_model_merged\.onnx is not as planned"):
        verify(tmp_path / "out", base=spoken.base, adapters=[spoken.adapter], **given)
    stray.unlink()
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = bytes([weight.raw_data[0] ^ 0x44, *weight.raw_data[1:]])
    onnx.save(model, path)
    with pytest.raises(VerificationError, match="decoder_model: ") as caught:
        verify(tmp_path / "out", base=spoken.base, adapters=[spoken.adapter], **given)
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert failed == {"decoder_model: rounded weights, in steps"}


def test_the_digests_cover_both_files(spoken, tmp_path):
    shutil.copytree(spoken.out, tmp_path / "out")
    assert verify(tmp_path / "out").passed
    with (tmp_path / "out" / "encoder_model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError, match=r"encoder_model\.onnx"):
        verify(tmp_path / "out")


@pytest.mark.slow
def test_it_is_proven_again_by_its_manifest(spoken):
    again = verify(spoken.out, base=spoken.base, adapters=[spoken.adapter])
    assert {check.name for check in again.checks} >= PROVEN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "twice"), [("t5", 96 * 32 * 4), ("bart", None)])
def test_generates_as_transformers_does(name, twice, tmp_path):
    base, adapter = made(name, tmp_path)
    report = export_onnx(base, [adapter], tmp_path / "out", kv_cache=True)
    checks = {check.name: check for check in report.checks}
    assert checks.keys() >= PROVEN
    assert checks[TOKENS].detail == "128 tokens"
    if twice:
        assert report.facts["stored_twice"] == twice
        assert any("are in both files" in line for line in report.warnings)
