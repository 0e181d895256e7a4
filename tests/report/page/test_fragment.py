from __future__ import annotations

import page_reports

from lora_export.report.result import Report


def test_a_repr_is_two_lines():
    assert repr(page_reports.proved(layers=143)) == (
        "<Report command='merge', output='out/merged', 6 checks, 0 changed tensors, 1 file, "
        "1 warning>\n  PROVED: merged = base + adapter, rounded to bfloat16, which keeps 93.0% of "
        "the update, to 9 % of the allowed error (weights, outputs, ONNX graph)"
    )


def test_the_repr_of_a_refusal_has_its_cause():
    head, verdict = repr(page_reports.failed()).splitlines()
    assert head == "<Report command='verify', output='release/model', 5 checks (1 failed)>"
    assert verdict.startswith("  REFUSED: 4 of 28 modules have half a factor")


def test_a_repr_of_an_inspection_is_one_line():
    assert repr(Report("inspect")) == "<Report command='inspect', output='', 0 checks>"


def test_a_repr_of_an_inspected_adapter_has_its_dialect_modules_and_base():
    found = {"kind": "adapter", "path": "lora", "dialect": "peft", "modules": [{}, {}]}
    report = Report(
        "inspect", facts={"found": {**found, "base": {"name": "llama<", "found": None}}}
    )
    words = "adapter lora: peft, 2 modules, base llama"
    assert repr(report).splitlines()[1:] == [f"  {words}<"]
    assert f"<p>{words}&lt;</p>" in report._repr_html_()


def test_hostile_names_keep_the_repr_in_its_lines():
    text = repr(page_reports.failed("\x1b[2J\n\u202e"))
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_notebook_shows_the_verdict_and_the_sizes():
    found = page_reports.proved("<script>")._repr_html_()
    assert "PROVED" in found
    assert "3.3 \u00d7 10\u207b\u2076" in found
    assert "<script>" not in found
    assert len(found) < 4_000
