"""Goldens: digests, errors and sizes that a result must have, and --update."""

from __future__ import annotations

import re
import subprocess

import onnx
import pytest
from safetensors.torch import load_file, save_file
from suite_place import CASE, MERGE

import lora_export
from lora_export import api
from lora_export.records import Check, WrittenFile
from lora_export.report.result import Report
from lora_export.suites.running.judge import worst_error
from lora_export.suites.suite import Case

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


def test_update_keeps_the_largest_of_all_rows_of_a_case(place, monkeypatch):
    """Rows of other errors and sizes: the last one is the smallest."""
    bounds = 'expect = { max_error = 1e-12, size_below = "1" }'
    found = {"merge": (3e-3, 9000), "onnx": (2e-5, 5_000_000), "onnx:fp16": (1e-6, 70)}

    def verb(name):
        def call(*_args, **options):
            error, size = found[f"{name}:{p}" if (p := options.get("precision")) else name]
            checks = (Check("outputs", True, error, 1.0, level="model"),)  # noqa: FBT003
            return Report(name, checks=checks, files=(WrittenFile("model", "0" * 64, size),))

        return call

    monkeypatch.setattr(api, "merge", verb("merge"))
    monkeypatch.setattr(api, "export_onnx", verb("onnx"))
    case = f"{MERGE}artefacts = ['merge', 'onnx', 'onnx:fp16']\n{bounds}\n"
    assert place.run(case, update=True).passed
    text = (place.folder / "suite.toml").read_text()
    assert re.search(r'max_error = 0\.003\d?, size_below = "5.1MB"', text), text
    assert lora_export.parity(place.folder / "suite.toml").passed


REFUSED = {
    "a refusal": (4, MERGE.replace("lora.s", "other.s") + GOLDEN),
    "a level that was not proven": (5, f"{MERGE}require = ['model']\n{GOLDEN}"),
    "no outputs": (5, MERGE + GOLDEN.replace("{", "{ max_error = 1.0,")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_row_that_does_not_hold_updates_nothing(what, place):
    status, case = REFUSED[what]
    assert place.run(f"{case}\n", update=True).status == status
    assert not (place.folder / "golden").exists()


def test_external_data_of_an_artefact_counts(place):
    from lora_export.suites.running.content_key import Digests
    from lora_export.suites.running.goldens import digested

    weight = onnx.helper.make_tensor("w", 1, [2], b"12345678", raw=True)
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", 1, [2])
    graph = onnx.helper.make_graph([node], "g", [], [out], [weight])
    path = place.folder / "m.onnx"
    onnx.save_model(onnx.helper.make_model(graph), path, save_as_external_data=True,
                    location="m.bin", size_threshold=0)  # fmt: skip
    case = Case("v", 0, "s:1", "", (), (), str(path), {})
    files = digested(case.rows()[0], Report("verify", str(path)), Digests())
    assert {name: file.size for name, file in files.items()}["m.onnx/m.bin"] == 8
