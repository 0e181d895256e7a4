"""onnx --layout end to end: whole folders from one capture, proven, published and proven again."""

import json
from dataclasses import replace
from functools import partial

import onnxruntime
import pytest
import torch

from lora_export.api import export_onnx, verify
from lora_export.errors import InputError, UsageError, VerificationError
from lora_export.onnx_export import export
from lora_export.onnx_export.file import save
from lora_export.report.text import report_text
from lora_export.report.verdict import verdict

FACTS = {"alpha": 6, "fan_in_fan_out": False}


def saved(model, folder, *modules):
    """Save a model with a tokenizer file, and an adapter on modules of 64 rows and columns."""
    base = folder / "base"
    model.save_pretrained(base)
    (base / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {}}}')
    (base / "vocab.txt").write_text("a\n")
    torch.manual_seed(1)
    factors = {
        f"{module}.lora_{part}": torch.randn(*shape) * 0.3
        for module in modules
        for part, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    torch.save(factors, folder / "lora.pt")
    return base, folder / "lora.pt"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=40, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    module = "bert.encoder.layer.0.attention.self.query"
    return saved(BertForSequenceClassification(config), tmp_path_factory.mktemp("bert"), module)


@pytest.fixture(scope="module")
def hf(bert, tmp_path_factory):
    """The folder in two precisions, with the report of its export."""
    folder = tmp_path_factory.mktemp("made") / "hf"
    base, adapter = bert
    report = export_onnx(base, [adapter], folder, layout="hf", precision="fp32,int8", **FACTS)
    return folder, report


FILES = {
    "onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json", "vocab.txt",
    "lora_export.json",
}  # fmt: skip


def test_a_folder_in_two_precisions_from_one_capture(bert, hf):
    folder, report = hf
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == FILES == {file.path for file in report.files}
    for name in ("config.json", "tokenizer.json", "vocab.txt"):
        assert (folder / name).read_bytes() == (bert[0] / name).read_bytes()
    for name in ("onnx/model.onnx", "onnx/model_quantized.onnx"):
        session = onnxruntime.InferenceSession(folder / name)
        assert {str(i.shape) for i in session.get_inputs()} == {"['batch_size', 'sequence_length']"}
    record = json.loads((folder / "lora_export.json").read_text())["onnx"]
    assert (record["layout"], record["precision"]) == ("hf", "fp32,int8")
    assert record["graphs"]["onnx/model_quantized.onnx"]["loss"][0]["output"] == "logits"
    names = {check.name for check in report.checks}
    assert {"ONNX Runtime = unmerged", "rounded weights, in steps"} <= names
    assert report.facts["graph"]["capture"] == "new"
    assert report.facts["lowered"]["precision"] == "int8"
    assert report.passed


def test_the_folder_is_proven_again(bert, hf, tmp_path):
    folder, _ = hf
    assert verify(folder).passed
    again = verify(folder, base=bert[0], adapters=[bert[1]])
    names = {check.name for check in again.checks}
    assert {"side files", "ONNX Runtime = unmerged", "rounded weights, in steps"} <= names
    assert any("layout hf" in warning for warning in again.warnings)
    assert not again.next


def copied(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def test_a_changed_side_file_and_a_stray_graph_are_found(bert, hf, tmp_path):
    folder = copied(hf[0], tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    (folder / "onnx/model_q4.onnx").write_bytes((folder / "onnx/model.onnx").read_bytes())
    with pytest.raises(VerificationError) as caught:
        verify(folder, base=bert[0], adapters=[bert[1]])
    failed = {check.name: check for check in caught.value.checks if not check.passed}
    assert {*failed} == {"digests", "files listed", "side files"}
    assert "config.json, onnx/model_q4.onnx" in failed["side files"].detail


def test_without_a_manifest_layout_and_precisions_are_named(bert, hf, tmp_path):
    folder = copied(hf[0], tmp_path)
    (folder / "lora_export.json").unlink()
    given = {"base": bert[0], "adapters": [bert[1]], **FACTS}
    with pytest.raises(UsageError, match="nothing says how they lie") as refused:
        verify(folder, **given)
    assert "--layout NAME" in refused.value.problems[0].hint
    given["layout"] = "hf"
    assert verify(folder, precision="fp32,int8", **given).passed
    with pytest.raises(InputError, match="no such file") as caught:
        verify(folder, precision="fp32,int8,int4", **given)
    assert "model_q4.onnx" in str(caught.value)


def test_a_file_has_no_layout_of_a_folder(bert, hf):
    file = hf[0] / "onnx/model.onnx"
    with pytest.raises(UsageError, match="is a folder's, and this is a file"):
        verify(file, base=bert[0], adapters=[bert[1]], layout="hf", **FACTS)


def test_a_wrong_graph_among_the_files_is_found(bert, hf, tmp_path):
    folder = copied(hf[0], tmp_path)
    (folder / "lora_export.json").unlink()
    (folder / "onnx/model_quantized.onnx").write_bytes((folder / "onnx/model.onnx").read_bytes())
    with pytest.raises(VerificationError) as caught:
        verify(
            folder, base=bert[0], adapters=[bert[1]], layout="hf", precision="fp32,int8", **FACTS
        )
    failed = [check for check in caught.value.checks if not check.passed]
    assert {check.level for check in failed} == {"precision"}


def test_a_damaged_graph_fails_its_own_check(bert, hf, tmp_path):
    folder = copied(hf[0], tmp_path)
    for name in ("lora_export.json", "onnx/model_quantized.onnx"):
        (folder / name).unlink()
    (folder / "onnx/model.onnx").write_bytes(b"x")
    with pytest.raises(VerificationError, match="cannot be read as an ONNX file"):
        verify(folder, base=bert[0], adapters=[bert[1]], layout="hf", **FACTS)


def test_a_given_tolerance_is_for_the_lower_files(bert, tmp_path):
    report = export_onnx(
        bert[0], [bert[1]], tmp_path / "out", layout="hf", precision="fp32,int8", atol=50.0, **FACTS
    )
    checks = {check.name: check for check in report.checks}
    assert checks["ONNX Runtime = unmerged"].tolerance < 1e-2
    assert checks["int8 = float32, as far as allowed"].tolerance == 50.0


def test_a_refused_file_leaves_no_folder(bert, tmp_path, monkeypatch):
    def forget(graph, path, weights, **settings):
        changed = {**weights, "classifier.weight": weights["classifier.weight"] + 1}
        return save.save_model(graph, path, changed, **settings)

    monkeypatch.setattr(export, "save_model", forget)
    with pytest.raises(VerificationError):
        export_onnx(bert[0], [bert[1]], tmp_path / "out", layout="hf", **FACTS)
    assert not [*tmp_path.iterdir()]


KILLED = """
import os, signal
from lora_export.api import export_onnx
from lora_export.onnx_export import export
from lora_export.onnx_export.file import save

def half(graph, path, weights, **settings):
    save.save_model(graph, path, weights, **settings)
    os.kill(os.getpid(), signal.SIGKILL)

export.save_model = half
export_onnx({base!r}, [{adapter!r}], "out", layout="hf", verify=False, **{facts!r})
"""


def test_a_killed_run_leaves_no_folder_and_the_next_one_clears_up(bert, tmp_path, fork_python):
    base, adapter = map(str, bert)
    (tmp_path / "killed.py").write_text(KILLED.format(base=base, adapter=adapter, facts=FACTS))
    assert fork_python("killed.py", cwd=tmp_path).returncode == -9
    assert not (tmp_path / "out").exists()
    (tmp_path / "killed.py").unlink()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".")
    export_onnx(base, [adapter], tmp_path / "out", layout="hf", verify=False, **FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_shows_every_precision(hf):
    lowered = hf[1].facts["lowered"]
    facts = {name: value for name, value in hf[1].facts.items() if name != "lowered"}
    facts["precisions"] = [lowered, {**lowered, "precision": "int4"}]
    report = replace(hf[1], facts=facts)
    assert "every ONNX file = base + adapter, rounded to int8, int4" in str(verdict(report))
    text = report_text(report, verbose=False)
    assert "precision int8:" in text
    assert "precision int4:" in text
    shown = report._repr_html_()
    assert "int8, int4" in shown


def test_an_encoder_and_its_decoder_have_no_such_folder(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=31, d_model=64, d_kv=32, d_ff=64, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    module = "decoder.block.0.layer.0.SelfAttention.q"
    base, adapter = saved(T5ForConditionalGeneration(config), tmp_path, module)
    with pytest.raises(UsageError, match="no place for an encoder and its decoder"):
        export_onnx(base, [adapter], tmp_path / "out", layout="hf", kv_cache=True, **FACTS)
    planned = export_onnx(base, [adapter], layout="hf", dry_run=True, **FACTS)
    assert any("needs encoder and decoder as two files" in line for line in planned.warnings)
    assert not any("--kv-cache" in line for line in planned.warnings)
    given = {"precision": "fp32,int8", "kv_cache": True, **FACTS}
    with pytest.raises(UsageError, match="no place for an encoder and its decoder"):
        verify(tmp_path, base=base, adapters=[adapter], layout="hf", **given)


def test_a_decoder_without_its_past_is_warned_of(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=31, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    base, adapter = saved(LlamaForCausalLM(config), tmp_path, "model.layers.0.self_attn.q_proj")
    made = partial(export_onnx, base, [adapter], tmp_path / "out", dry_run=True, **FACTS)
    warnings = [
        [one for one in made(layout="hf", **more).warnings if "--kv-cache" in one]
        for more in ({}, {"kv_cache": True}, {"task": "feature-extraction"})
    ]
    assert [*map(len, warnings)] == [1, 0, 0]


def test_external_data_lies_where_the_clients_look(bert, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    monkeypatch.setattr(export, "save_model", partial(save.save_model, external_threshold=1))
    export_onnx(bert[0], [bert[1]], folder, layout="hf", verify=False, **FACTS)
    assert (folder / "onnx/model.onnx_data").is_file()
    told = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert told == {"use_external_data_format": {"model.onnx": 1}}
    onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    assert verify(folder).passed
    export_onnx(bert[0], [bert[1]], folder, layout="hf", verify=False, force=True, **FACTS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp32,int8"}, "--layout onnx has a place for one precision"),
        ({"layout": "genai"}, "take and give their past"),
        ({"layout": "genai", "precision": "fp32,int8"}, "a place for one precision"),
        ({"layout": "hf", "output": "out.onnx"}, "--layout hf writes a folder"),
        ({"output": "out"}, "ends in .onnx"),
        ({"layout": "tflite"}, "layout is 'tflite'"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(bert, tmp_path, settings, words):
    output = tmp_path / settings.get("output", "out.onnx" if "layout" not in settings else "out")
    rest = {name: value for name, value in settings.items() if name != "output"}
    with pytest.raises(UsageError, match=words):
        export_onnx(bert[0], [bert[1]], output, **rest, **FACTS)
    assert not [*tmp_path.iterdir()]


def test_a_base_without_a_config_has_no_folder(tmp_path):
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "base.pt")
    torch.save({"lora_A": torch.ones(1, 4), "lora_B": torch.ones(4, 1)}, tmp_path / "lora.pt")
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(4, 4, bias=False)\n"
    )
    settings = {
        "model": f"{tmp_path / 'net.py'}:build",
        "alpha": 1,
        "input": ["x=float32[batch,4]"],
    }
    with pytest.raises(UsageError, match="for Hugging Face folders"):
        export_onnx(
            tmp_path / "base.pt", [tmp_path / "lora.pt"], tmp_path / "out", layout="hf", **settings
        )
