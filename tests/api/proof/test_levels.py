"""Which levels of a proof ran, which did not and why; and the options that decide it."""

import json
import shutil

import pytest
from peft import LoraConfig
from peft_folders import llama, save

from lora_export import export_onnx, merge, verify
from lora_export.errors import UsageError, VerificationError
from lora_export.models import choose, memory
from lora_export.report.document import report_json
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
    verdict, second, _ = report_text(report, verbose=False).split("\n\n", 2)
    assert verdict.startswith("PROVED: ")
    assert verdict.endswith("(weights, outputs)")
    assert second == "proven   weights, outputs (model)"
    manifest = json.loads((tmp_path / "out" / "lora_export.json").read_text())
    assert manifest["verification"]["levels"] == levels(report)


def test_the_weights_alone_where_the_user_asks_for_no_more(merged):
    report = merged(proof="weights")
    why = {"proven": False, "why": "--proof weights"}
    assert levels(report) == {"weights": {"proven": True}, "model": why}
    verdict, second, _ = report_text(report, verbose=False).split("\n\n", 2)
    assert verdict.startswith("PROVED: merged = base + adapter, every element within its rounding")
    assert verdict.endswith("(weights; outputs not run)")
    assert second == "proven   weights\nunproven outputs (model): --proof weights"
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
    [why] = [found["why"] for found in levels(make()).values() if "why" in found]
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
    with pytest.raises(UsageError, match="verify without --base and --adapter leaves out") as told:
        verify(tmp_path / "out", require="model")
    assert "name both" in told.value.problems[0].hint


def test_an_onnx_file_may_be_proven_without_runs(folders, tmp_path, monkeypatch):
    base, adapter = folders
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    report = export_onnx(base, [adapter], tmp_path / "x.onnx", proof="weights")
    found = levels(report)
    assert [name for name, level in found.items() if level["proven"]] == ["weights", "file"]
    assert [name for name, level in found.items() if "why" in level] == ["model", "runtime"]
    with pytest.raises(UsageError, match="--precision fp16 is proven by runs"):
        export_onnx(base, [adapter], tmp_path / "y.onnx", proof="weights", precision="fp16")


def test_a_model_that_shows_nothing_of_the_adapter_is_not_called_proven(merged, monkeypatch):
    """The model ran, so --require model accepts it. The weights prove the update."""
    from lora_export.verification.model.tolerance import Tolerance

    monkeypatch.setattr(Tolerance, "unresolved", lambda _: "it moves logits by 1e-9")
    report = merged(require="model", seed=1)
    assert levels(report)["model"] == {
        "proven": False,
        "why": "does not resolve the adapter: it moves logits by 1e-9",
    }
    assert not any("had no effect" in warning for warning in report.warnings)


def test_a_dry_run_fails_where_the_run_would(merged, folders, tmp_path, monkeypatch):
    base, adapter = folders
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    config["architectures"] = ["NoSuchForCausalLM"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=r"not be run: config\.json names"):
        merge(other, [adapter], dry_run=True, require="model")
    assert (
        "names the architectures" in merge(other, [adapter], dry_run=True).facts["proof"]["not_run"]
    )


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
    from lora_export.api.proof import checkpoint_proof, expected

    monkeypatch.setattr(expected, "is_large", lambda _: True)
    monkeypatch.setattr(expected, "_SECONDS", 1e-3)
    proof = merged(dry_run=True).facts["proof"]
    assert proof["seconds"] > 0
    assert proof["read"] > 0
    monkeypatch.setattr(choose, "transformers_installed", lambda: False)
    words = "transformers is not installed"
    monkeypatch.setattr(checkpoint_proof, "why_no_model", lambda *_: words)
    assert merged(dry_run=True).facts["proof"]["not_run"] == "transformers is not installed"
