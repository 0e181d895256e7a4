"""The text of every report: its first and last line, its width, and that no row misleads."""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path

import pytest
from report.reports import REPORTS

from lora_export.report.sentences import failed_sentence, times_allowed
from lora_export.report.text import report_text
from lora_export.report.verdict import verdict

TEXTS = Path(__file__).parent / "texts"
WIDTHS = (60, 80)
_BARE = re.compile(r": [\d.e+-]+, (allowed|needed)")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_text(name, width):
    """LORA_EXPORT_NEW_TEXTS=1 writes the texts instead; read them before you commit them."""
    text = report_text(REPORTS[name], verbose=False, width=width)
    file = TEXTS / f"{name}.{width}.txt"
    if os.environ.get("LORA_EXPORT_NEW_TEXTS"):
        file.write_text(f"{text}\n", encoding="utf-8")
    assert f"{text}\n" == file.read_text(encoding="utf-8")


def test_every_text_has_a_report():
    assert {file.name for file in TEXTS.iterdir()} == {
        f"{name}.{width}.txt" for name in REPORTS for width in WIDTHS
    }


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_longer_than_the_terminal_but_for_one_word(name, width, verbose):
    for line in report_text(REPORTS[name], verbose=verbose, width=width).splitlines():
        words = line.split()
        assert len(line) <= width or len(words) - words.count("\\") == 1, line


@pytest.mark.parametrize("name", REPORTS)
def test_no_text_has_a_number_where_a_sentence_belongs(name):
    report = REPORTS[name]
    text = report_text(report, verbose=True, width=100)
    told = [text, str(verdict(report)), *map(failed_sentence, report.checks)]
    assert [words for words in told if _BARE.search(words)] == []
    for word in ("headroom", "none differ", "1 files", "0.0 x"):
        assert word not in text


@pytest.mark.parametrize("name", REPORTS)
def test_the_verdict_is_first_and_the_next_command_is_last(name):
    report = REPORTS[name]
    text = report_text(report, verbose=False, width=60)
    found = verdict(report)
    assert found is None or text.startswith(f"{found.word}: ")
    assert (found is None) is (report.command == "inspect")
    if report.next:
        last = text[text.rindex("\nnext:") + len("\nnext:") :]
        assert shlex.split(last.replace("\\\n", " ")) == shlex.split(report.next)


def test_modules_and_tensors_are_listed_on_demand():
    plan = REPORTS["planned"]
    text = report_text(plan, verbose=True, width=100)
    assert text.count("model.norm.weight") == 1
    merged = report_text(REPORTS["merged"], verbose=True, width=100)
    assert "model.norm.weight" not in merged
    assert "1 other tensor: copies of the base's" in merged
    for name in "qkvo":
        assert merged.count(f"self_attn.{name}_proj.weight  merged  F32 [8, 8]") == 1
    experts = report_text(REPORTS["experts"], verbose=True, width=100)
    assert experts.count("  experts  r=4") == 1
    assert experts.count("down_proj.weight  merged") == 8


def test_words_of_the_outcome_are_painted_and_nothing_else():
    text = report_text(REPORTS["failed"], verbose=False, width=80)
    painted = report_text(
        REPORTS["failed"], verbose=False, width=80, paint=lambda word: f"<{word}>"
    )
    assert re.sub(r"<(.*?)>", r"\1", painted) == text
    found = re.findall(r"<(.*?)>", painted)
    checks = REPORTS["failed"].checks
    wanted = ["REFUSED", *("  ok" if check.passed else "  FAILED" for check in checks)]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(
    ("worst", "words"),
    [
        (0.0010003, "0.0010003, where 0.001 is allowed"),
        (0.00107, "0.0011, 1.1 times what is allowed (0.001)"),
        (math.nextafter(0.001, 1), "0.0010000000000000002, where 0.001 is allowed"),
        (math.inf, "inf, where 0.001 is allowed"),
    ],
)
def test_a_failure_just_above_its_bound_shows_that_it_is_above(worst, words):
    assert times_allowed(worst, 0.001) == words
