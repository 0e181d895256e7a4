"""The keyword `report=` and the option --report: where the page may go, and when it is written."""

from __future__ import annotations

import json
import os

import click.testing
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_export
from lora_export.api.page_file import PageFile
from lora_export.cli.main import main
from lora_export.errors import (
    FitError,
    InputError,
    OutputError,
    StorageError,
    UsageError,
    VerificationError,
)
from lora_export.report.page.frame import HTML_START, MARKDOWN_START


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a base, an adapter, and one that does not fit; it is the current folder."""
    draw = np.random.default_rng(0).standard_normal
    weight, a, b = (draw(shape).astype("f4") for shape in ((6, 4), (2, 4), (6, 2)))
    save_file({"h.0.fc.weight": weight, "h.1.fc.weight": weight}, tmp_path / "base.safetensors")
    factors = {f"h.{n}.fc.lora_{s}": f for n in (0, 1) for s, f in (("A", a), ("B", b))}
    save_file(factors, tmp_path / "lora.safetensors")
    save_file({"gone.lora_A": a, "gone.lora_B": b}, tmp_path / "unfit.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(output="out.safetensors", adapter="lora.safetensors", **settings):
    return lora_export.merge("base.safetensors", [adapter], output, alpha=4, **settings)


@pytest.mark.parametrize(("name", "start"), [("r.html", HTML_START), ("r.md", MARKDOWN_START)])
def test_a_merge_writes_its_page(files, name, start):
    report = merge(report=name)
    page = (files / name).read_text()
    assert page.startswith(start)
    assert "PROVED" in page
    manifest = json.loads((files / "out.safetensors.lora_export.json").read_text())
    digests = [file["sha256"] for key in ("base", "adapters") for file in manifest["inputs"][key]]
    digests += [file.sha256 for file in report.files]
    assert len(digests) == 4
    assert all(digest in page for digest in digests)
    assert "alpha 4" in page
    assert not list(files.glob(".*"))


@pytest.mark.parametrize("name", ["r.html", "r.md"])
def test_the_same_merge_gives_the_same_page(files, name):
    merge(report=name)
    before = (files / name).read_bytes()
    merge(report=name, force=True)
    after = (files / name).read_bytes()
    assert after.replace(b", force True", b"") == before


def test_verify_and_a_dry_run_have_a_page(files):
    merge()
    lora_export.verify("out.safetensors", report="digests.html")
    assert "UNCHANGED" in (files / "digests.html").read_text()
    lora_export.verify("out.safetensors", base="base.safetensors", adapters=["lora.safetensors"],
                       report="whole.html")  # fmt: skip
    whole = (files / "whole.html").read_text()
    assert "PROVED" in whole
    assert "not hashed" in whole
    merge(None, dry_run=True, report="plan.html")
    assert "PLANNED" in (files / "plan.html").read_text()


def test_a_failed_proof_has_a_page_with_all_that_was_found(files):
    merge()
    merged = load_file("out.safetensors")
    merged["h.1.fc.weight"] = merged["h.1.fc.weight"] * 1.5
    save_file(merged, "bad.safetensors")
    with pytest.raises(VerificationError) as refusal:
        lora_export.verify("bad.safetensors", base="base.safetensors", alpha=4,
                           adapters=["lora.safetensors"], report="bad.html")  # fmt: skip
    page = (files / "bad.html").read_text()
    assert "REFUSED" in page
    assert "h.1.fc" in page
    assert "The updates are" in page
    assert page.count('class="mark bad"') == sum(not c.passed for c in refusal.value.checks) > 0


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"adapter": "unfit.safetensors"}, FitError), ({"adapter": "gone.safetensors"}, InputError),
     ({"output": "out.pt"}, UsageError), ({"output": "base.safetensors"}, OutputError)],
)  # fmt: skip
def test_every_refusal_has_a_page(files, settings, error):
    with pytest.raises(error) as refusal:
        merge(report="r.html", **settings)
    page = (files / "r.html").read_text()
    assert "REFUSED" in page
    assert str(refusal.value.problems[0].message)[:20] in page


def test_a_refusal_names_the_missing_facts_on_its_page_as_on_the_terminal(files):
    with pytest.raises(UsageError):
        lora_export.merge("base.safetensors", ["lora.safetensors"], "out.safetensors",
                          report="r.md")  # fmt: skip
    assert "lora-export merge base.safetensors lora.safetensors" in (files / "r.md").read_text()


PLACES = {
    "r.txt": (UsageError, "ends in .html or .md"),
    "report": (UsageError, "ends in .html or .md"),
    "gone/r.html": (OutputError, "does not exist"),
    "base.safetensors/r.html": (OutputError, "is not a folder"),
    "mine.html": (OutputError, "is no report of lora-export"),
    "empty.html": (OutputError, "is no report of lora-export"),
    "folder.html": (OutputError, "is no report of lora-export"),
    "link.html": (OutputError, "is no report of lora-export"),
    "pipe.html": (OutputError, "is no report of lora-export"),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(files, place, force):
    (files / "mine.html").write_text("<!doctype html><p>my own page")
    (files / "empty.html").touch()
    (files / "folder.html").mkdir()
    (files / "link.html").symlink_to("mine.html")
    os.mkfifo(files / "pipe.html")
    error, message = PLACES[place]
    with pytest.raises(error, match=message):
        merge(report=place, force=force)
    assert not (files / "out.safetensors").exists()
    assert (files / "mine.html").read_text().endswith("my own page")


def test_the_page_lies_in_no_input_and_in_no_output(files):
    (files / "base").mkdir()
    weights = load_file("base.safetensors")
    save_file(weights, files / "base" / "model.safetensors")
    for place in ("base/r.html", "out/r.html"):
        with pytest.raises(OutputError, match="lies inside"):
            lora_export.merge("base", ["lora.safetensors"], "out", alpha=4, report=place)
        (files / "out").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="lies inside"):
            lora_export.merge("base", ["lora.safetensors"], "out", alpha=4, report=place)
    assert list((files / "out").iterdir()) == []
    with pytest.raises(OutputError, match="is the output"):
        merge(undo="undo.html", report="undo.html")


def test_an_earlier_report_is_replaced_in_either_form(files):
    for name in ("r.html", "r.md"):
        with pytest.raises(FitError):
            merge(adapter="unfit.safetensors", report=name)
        assert "REFUSED" in (files / name).read_text()
        merge(report=name, force=True)
        assert "PROVED" in (files / name).read_text()


def test_a_report_is_no_weights_that_force_may_replace_by_name(files):
    merge(report="r.html")
    with pytest.raises(UsageError):
        merge("r.html", force=True)


def test_a_page_that_cannot_be_written_at_the_end(files, monkeypatch):
    def broken(self, text):
        raise StorageError("No space left on device", where=str(self.path))

    monkeypatch.setattr(PageFile, "write", broken)
    with pytest.raises(StorageError) as fault:
        merge(report="r.html")
    assert (
        fault.value.problems[0].hint == "out.safetensors is published; only its report is missing"
    )
    assert (files / "out.safetensors").exists()
    with pytest.raises(FitError) as refusal:
        merge("other.safetensors", adapter="unfit.safetensors", report="r.html")
    assert "could not be written" in refusal.value.problems[-1].message


def test_a_link_to_nothing_is_no_part_of_the_page(files):
    (files / "base").mkdir()
    save_file(load_file("base.safetensors"), files / "base" / "model.safetensors")
    lora_export.merge("base", ["lora.safetensors"], "out", alpha=4)
    (files / "out" / "gone.txt").symlink_to("nowhere")
    lora_export.verify("out", report="r.html")
    assert "UNCHANGED" in (files / "r.html").read_text()
    save_file({}, files / "out" / "model.safetensors")
    with pytest.raises(VerificationError) as refusal:
        lora_export.verify("out", report="r.html")
    assert "could not be written" not in str(refusal.value)
    assert "REFUSED" in (files / "r.html").read_text()


def test_a_fault_in_making_the_page_replaces_no_outcome(files, monkeypatch):
    def broken(*_):
        raise FileNotFoundError("gone")

    monkeypatch.setattr("lora_export.api.page_file.rendered", broken)
    with pytest.raises(FitError) as refusal:
        merge(adapter="unfit.safetensors", report="r.html")
    lost = refusal.value.problems[-1]
    assert lost.message == "the report could not be written: FileNotFoundError: gone"
    with pytest.raises(StorageError, match="could not be made") as fault:
        merge(report="r.html")
    assert "out.safetensors is published" in fault.value.problems[0].hint


def test_a_wrong_keyword_is_refused_as_without_a_report(files):
    with pytest.raises(UsageError, match="unknown keyword"):
        merge(report="r.html", alpah=3)
    with pytest.raises(UsageError, match="report is 3"):
        merge(report=3)


def test_the_command_line_has_the_option(files):
    words = ["merge", "base.safetensors", "lora.safetensors", "--alpha", "4", "-o",
             "out.safetensors", "--report", "r.html"]  # fmt: skip
    done = click.testing.CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "PROVED" in (files / "r.html").read_text()


def test_the_page_of_a_model_has_the_proof_in_one_picture(root, tmp_path):
    samples = root / "samples" / "vit"
    page = tmp_path / "vit.html"
    report = lora_export.merge(samples / "base", [samples / "lora"], tmp_path / "out", report=page)
    text = page.read_text()
    assert 'class="axis"' in text
    assert "The adapter moves logits by up to" in text
    [noise] = report.facts["noise"]
    assert noise["output"] == "logits"
    assert 0 < noise["noise"] < noise["allowed"] < noise["effect"]
    assert text.count('<rect class="h') > 18
    assert "seconds" not in text


def test_an_export_has_a_page(root, tmp_path):
    samples = root / "samples" / "digits"
    page = tmp_path / "digits.md"
    lora_export.export_onnx(
        samples / "base.safetensors", [samples / "lora.safetensors"], tmp_path / "digits.onnx",
        model=f"{samples / 'model.py'}:build", report=page,
    )  # fmt: skip
    text = page.read_text()
    assert "| rounding noise | measured error |" in text
    assert "Outputs of ONNX Runtime" in text
