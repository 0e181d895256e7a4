"""Which levels of a proof ran, which did not and why; and the options that decide it."""

import json

import pytest
from peft import LoraConfig
from peft_folders import llama, save

from lora_export import export_onnx, merge, verify
from lora_export.errors import UsageError, VerificationError
from lora_export.models import choose, memory
from lora_export.report.result import report_json
from lora_export.report.text import report_text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    save(folder, llama(), LoraConfig(target_modules=["q_proj"], r=4))
    return folder / "base", folder / "lora"


@pytest.fixture
def merged(folders, tmp_path):
    base, adapter = folders
    return lambda **settings: merge(base, [adapter], tmp_path / "out", **settings)


def levels(report):
    return report_json(report)["verification"]["levels"]


def test_every_level_is_named_first(merged, tmp_path):
    report = merged(require="model")
    assert levels(report) == {"weights": {"proven": True}, "model": {"proven": True}}
    assert report_text(report, verbose=False).startswith("proven   weights, model\n\n")
    manifest = json.loads((tmp_path / "out" / "lora_export.json").read_text())
    assert manifest["verification"]["levels"] == levels(report)


def test_the_weights_alone_where_the_user_asks_for_no_more(merged):
    report = merged(proof="weights")
    why = {"proven": False, "not_run": "--proof weights"}
    assert levels(report) == {"weights": {"proven": True}, "model": why}
    first = "proven   weights\nnot run  model: --proof weights\n\n"
    assert report_text(report, verbose=False).startswith(first)
    assert not report.warnings


@pytest.mark.parametrize("command", ["merge", "verify"])
def test_what_could_not_run_is_a_failure_where_it_is_required(
    command, merged, folders, tmp_path, monkeypatch
):
    if command == "verify":
        merged()
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    base, adapter = folders
    make = (
        merged
        if command == "merge"
        else lambda **s: verify(tmp_path / "out", base=base, adapters=[adapter], **s)
    )
    with pytest.raises(VerificationError, match="model level could not be run: running the model"):
        make(require="model")
    if command == "merge":
        assert not list(tmp_path.iterdir())
    [why] = [found["not_run"] for found in levels(make()).values() if "not_run" in found]
    assert "0.0 GB are available" in why


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verify": False}, "requires a proof that --no-verify leaves out"),
        ({"proof": "weights"}, "requires a proof that --proof weights leaves out"),
    ],
)
def test_a_proof_that_is_required_and_left_out_is_refused(settings, message, merged, folders):
    with pytest.raises(UsageError, match=message):
        merged(require="model", **settings)
    base, adapter = folders
    with pytest.raises(UsageError, match=message):
        export_onnx(base, [adapter], "never.onnx", require="model", **settings)


def test_digests_alone_are_no_required_proof(merged, tmp_path):
    merged()
    with pytest.raises(UsageError, match="verify without --base and --adapter leaves out"):
        verify(tmp_path / "out", require="model")


def test_an_onnx_file_may_be_proven_without_runs(folders, tmp_path, monkeypatch):
    base, adapter = folders
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    report = export_onnx(base, [adapter], tmp_path / "x.onnx", proof="weights")
    found = levels(report)
    assert [name for name, level in found.items() if level["proven"]] == ["weights", "file"]
    assert [name for name, level in found.items() if "not_run" in level] == ["model", "runtime"]
    with pytest.raises(UsageError, match="--precision fp16 is proven by runs"):
        export_onnx(base, [adapter], tmp_path / "y.onnx", proof="weights", precision="fp16")


PLANS = [
    ({}, "the proof as a model reads "),
    ({"proof": "weights"}, "the proof will be by weights only: --proof weights"),
    ({"verify": False}, ""),
]


@pytest.mark.parametrize(("settings", "words"), PLANS)
def test_a_dry_run_tells_what_the_proof_takes(settings, words, merged):
    report = merged(dry_run=True, **settings)
    text = report_text(report, verbose=False)
    assert words in text
    assert ("proof" in text) == bool(words)


def test_a_dry_run_tells_the_time_of_a_large_model(merged, monkeypatch):
    from lora_export.api.proof import expected

    monkeypatch.setattr(expected, "is_large", lambda _: True)
    monkeypatch.setattr(expected, "_SECONDS", 1e-3)
    proof = merged(dry_run=True).facts["proof"]
    assert proof["seconds"] > 0
    assert proof["read"] > 0
    monkeypatch.setattr(choose, "transformers_installed", lambda: False)
    monkeypatch.setattr(expected, "why_no_model", lambda *_: "transformers is not installed")
    assert merged(dry_run=True).facts["proof"]["not_run"] == "transformers is not installed"
