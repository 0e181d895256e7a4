"""Goldens: digests, errors and sizes that a result must have, and --update."""

from __future__ import annotations

import re
import subprocess

import pytest
from safetensors.torch import load_file, save_file
from suite_place import CASE, MERGE

from lora_export.records import Check
from lora_export.report.result import Report
from lora_export.suites.reading.update_suite import update_goldens
from lora_export.suites.running.judge import worst_error

GOLDEN = "expect = { sha256 = 'golden/tiny.sha256' }"


def test_the_error_of_a_lower_precision_is_its_distance(place):
    checks = (
        Check("merged = unmerged", True, 1e-6, 1e-5, level="model"),  # noqa: FBT003
        Check("int8 keeps the adapter", True, 0.2, 1.0, level="precision"),  # noqa: FBT003
    )
    loss = [{"worst": 0.01}, {"worst": 0.03}]
    assert worst_error(Report("onnx", checks=checks, facts={"lowered": {"loss": loss}})) == 0.03
    assert worst_error(Report("onnx", checks=checks)) is None  # of a pass: it is run again
    assert worst_error(Report("onnx", checks=checks[:1])) == 1e-6


def test_a_golden_is_written_and_compared(place):
    row = place.row(GOLDEN)
    assert (row.outcome, row.status) == ("failed", 5)
    assert row.cause.endswith("golden/tiny.sha256 lists no file of it; --update writes them")
    assert row.verdict.word == "PROVED"
    assert place.row(GOLDEN, update=True).outcome == "held"
    golden = place.folder / "golden" / "tiny.sha256"
    assert re.fullmatch(r"[0-9a-f]{64}  merged.safetensors\n", golden.read_text())
    keep = place.folder / "kept"
    assert place.row(GOLDEN, keep=keep).outcome == "held"
    command = ["sha256sum", "-c", str(golden)]
    subprocess.run(command, cwd=keep / "tiny", check=True, capture_output=True)


def test_another_digest_fails_also_where_the_row_has_passed(place):
    place.row(GOLDEN, update=True)
    golden = place.folder / "golden" / "tiny.sha256"
    golden.write_text(f"{'0' * 64}  merged.safetensors\n{'1' * 64}  merged.bin\n")
    for _ in range(2):
        row = place.row(GOLDEN)
        assert (row.outcome, row.cached) == ("failed", False)
        assert f"merged.safetensors has another digest than in {golden}" in row.cause
        assert f"merged.bin is listed in {golden} and was not written" in row.cause
    golden.write_text("what?\n")
    row = place.row(GOLDEN)
    assert (row.outcome, row.status) == ("error", 3)
    assert "no line of sha256sum" in row.cause


def test_rows_of_a_case_share_a_golden(place):
    base = load_file(place.folder / "base.safetensors")
    (place.folder / "base").mkdir()
    save_file(base, place.folder / "base" / "model.safetensors", metadata={"format": "pt"})
    folder = MERGE.replace('"base.safetensors"', '"base"')
    golden = place.folder / "golden" / "tiny.sha256"
    golden.parent.mkdir()
    golden.write_text(f"{'2' * 64}  model-int8.onnx\n")
    assert place.run(f"{folder}{GOLDEN}\n", update=True).passed
    names = [line.partition("  ")[2] for line in golden.read_text().splitlines()]
    assert names == ["merged/model.safetensors", "model-int8.onnx"]
    assert place.run(f"{folder}{GOLDEN}\n").passed


def test_the_digests_of_a_verified_artefact(place):
    place.row(keep=place.folder / "kept")
    case = f"{CASE.format('v')}alpha = 4\nartefact = 'kept/tiny/merged.safetensors'\n{GOLDEN}\n"
    assert place.run(case).status == 5
    assert place.run(case, update=True).passed
    assert place.run(case).passed


def test_errors_and_sizes(place):
    place.network()
    case = f'{CASE.format("net")}model = "net.py:build"\n'
    right = 'expect = { max_error = 1e-4, size_below = "1MB" }\n'
    assert [row.cause for row in place.run(f"{case}{right}").rows] == [""]
    [row] = place.run(f"{case}expect = {{ max_error = 1e-12, size_below = 100 }}\n").rows
    assert row.outcome == "failed"
    assert re.search(r"the outputs' error is \S+, and max_error is 1e-12; ", row.cause)
    assert "bytes, and size_below is 100" in row.cause
    row = place.row("expect = { max_error = 1 }")
    assert row.cause == "max_error is expected, and no outputs were compared"


SUITE = """\
# A suite.
format = 1
[[case]]  # max_error = 3 is no value
name = 'the max_error = "3"'
base = "base.safetensors"
adapters = ["lora.safetensors"]
model = "net.py:build"
expect = { max_error  =  1e-12, "size_below" = "100" }  # as small as that

[[case]]
name = "other"
base = "base.safetensors"
adapters = ["lora.safetensors"]
model = "net.py:build"
[case.expect]
# max_error = 2
max_error = 1e-11  # here
"""


def test_update_writes_the_values_and_nothing_else(place):
    import lora_export

    place.network()
    path = place.write(SUITE)
    path.chmod(0o640)
    result = lora_export.parity(path, update=True)
    assert [row.cause for row in result.rows] == ["", ""]
    text = path.read_text()
    error = r"\d\.?\d?e-0\d"
    pattern = re.escape(SUITE).replace("1e\\-12", error).replace("1e\\-11", error)
    assert re.fullmatch(pattern.replace('"100"', r'"\d+"'), text), text
    assert path.stat().st_mode & 0o777 == 0o640
    assert not [*place.folder.glob(".suite*")]
    assert lora_export.parity(path).passed
    lora_export.parity(path, update=True)
    assert path.read_text() == text


def test_a_proof_that_failed_updates_nothing(place, monkeypatch):
    from lora_export.suites import parity as module

    monkeypatch.setattr(module, "update_goldens", lambda *_: pytest.fail("updated"))
    assert place.run(MERGE.replace("lora.s", "other.s"), update=True).status == 4
    assert callable(update_goldens)
