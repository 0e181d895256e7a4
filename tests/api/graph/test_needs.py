"""What an export takes is said before it runs, and what does not fit is refused."""

from types import SimpleNamespace

import pytest
from peft import LoraConfig
from peft_folders import llama, save

from lora_export.api import export_onnx
from lora_export.api.graph import needs
from lora_export.errors import LimitError, StorageError, UsageError
from lora_export.records import TensorSpec
from lora_export.report.document import report_json
from lora_export.report.text import report_text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MB = 1 << 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("needs")
    save(folder, llama(), LoraConfig(target_modules=["q_proj"], r=4))
    return folder / "base", folder / "lora"


@pytest.fixture
def export(folders, tmp_path):
    base, adapter = folders
    return lambda **settings: export_onnx(
        base, [adapter], settings.pop("output", tmp_path / "x.onnx"), **settings
    )


def elements(report):
    return sum(step.out.elements for step in report.plan.steps())


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1), ("fp16", 0.5), ("int4", 0.3)])
def test_a_dry_run_tells_disk_and_memory(export, tmp_path, precision, share):
    report = export(precision=precision, dry_run=True)
    space = report_json(report)["space"]
    assert space["needed"] == pytest.approx(elements(report) * (4 + 4 * share), rel=0.2)
    assert space["memory"] == 600 * MB
    assert f"about {600 * MB // 10**6} MB of memory" in report_text(report, verbose=False)
    assert report.dry_run
    assert not list(tmp_path.iterdir())


def test_a_dry_run_needs_no_output(export):
    assert export(output=None, dry_run=True).output == ""
    with pytest.raises(UsageError, match="no output is named"):
        export(output=None)


def test_what_does_not_fit_into_memory_is_refused(export, tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "available_memory", lambda: 599 * MB)
    told = export(dry_run=True).warnings
    assert any("takes about 0.6 GB of memory, 0.6 GB are available" in one for one in told)
    with pytest.raises(LimitError, match=r"about 0\.6 GB of memory") as caught:
        export()
    assert caught.value.problems[0].hint.startswith("--no-verify")
    with pytest.raises(LimitError):
        export(verify=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("known", [None, 600 * MB])
def test_what_fits_or_is_not_known_is_made(export, tmp_path, monkeypatch, known):
    monkeypatch.setattr(needs, "available_memory", lambda: known)
    export(verify=False)
    assert (tmp_path / "x.onnx").exists()


def test_the_torch_models_of_a_large_base_count(export, monkeypatch):
    monkeypatch.setattr(needs, "proof_bytes", lambda base: 900 * MB)
    assert export(dry_run=True).facts["space"]["memory"] == 900 * MB
    assert export(dry_run=True, proof="weights").facts["space"]["memory"] == 600 * MB
    assert export(dry_run=True, verify=False).facts["space"]["memory"] == 600 * MB


@pytest.mark.parametrize(
    ("names", "dtypes", "copied"),
    [
        (["a", "b"], ["BF16", "BF16"], 0),
        (["a", "b"], ["F32", "F32"], 0),
        (["a", "b"], ["F32", "BF16"], 4 * 40),
        (["a", "b"], ["BF16", "I64"], 0),
        (["m.experts.0.up", "b"], ["BF16", "BF16"], 2 * 20),
    ],
)
def test_weights_that_are_copied_count(names, dtypes, copied):
    specs = [TensorSpec(name, dtype, (4, 5)) for name, dtype in zip(names, dtypes, strict=True)]
    plan = SimpleNamespace(steps=lambda: [SimpleNamespace(out=spec) for spec in specs])
    assert needs._copied_bytes(plan) == copied


def test_too_little_disk_is_refused(export, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_export.api.space._free", lambda _: 1000)
    with pytest.raises(StorageError, match="1,000 are free there"):
        export()
    assert not list(tmp_path.iterdir())
