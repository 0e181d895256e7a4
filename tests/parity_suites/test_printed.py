"""The rows as text, JSON, JUnit XML, Markdown, HTML, and as GitHub's summary and annotations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from suite_place import CASE, MERGE

from lora_export.cli import main
from lora_export.records import Check, Problem, WrittenFile
from lora_export.report.page.suite_page import rendered_suite
from lora_export.report.result import Report
from lora_export.report.verdict import Verdict
from lora_export.shown import shown
from lora_export.suites.outcome import Row, SuiteResult
from lora_export.suites.printing.github import row_annotations, write_summary
from lora_export.suites.printing.junit import junit_xml
from lora_export.suites.printing.rows_text import suite_text, suite_verdict
from lora_export.suites.printing.suite_markdown import suite_markdown
from lora_export.suites.printing.written import page_row

# The form that Jenkins' junit plug-in and GitLab read (junit-10.xsd): children, needed attributes.
SCHEMA = {
    "testsuites": (["testsuite"], {"tests", "failures", "errors", "time"}),
    "testsuite": (["properties", "testcase"], {"name", "tests", "failures", "errors", "skipped"}),
    "properties": (["property"], set()),
    "property": ([], {"name", "value"}),
    "testcase": (["skipped", "failure", "error", "system-out"], {"name", "classname", "time"}),
    "failure": ([], {"message", "type"}),
    "error": ([], {"message", "type"}),
    "skipped": ([], {"message"}),
    "system-out": ([], set()),
}

NASTY = "ca\x1bse|<b>&\"'`]]>\ud800\n%:,"
CHECKS = (
    Check("merged = unmerged", True, 1e-6, 1e-5, level="model"),  # noqa: FBT003
    Check("merged = unmerged", False, 3e-5, 1e-5, "\x00place", level="model", hint="look"),  # noqa: FBT003
    Check("digests", False, 1.0, 0.0, level="manifest"),  # noqa: FBT003
)
FILES = (WrittenFile("merged.safetensors", "ab" * 32, 12),)
PROVED = Verdict("PROVED", "merged = base + adapter", 0.06)
REFUSED = Verdict("REFUSED", "2 of 24 modules were not merged", 3.0)
PROBLEM = Problem("no such file", "here", "look elsewhere")


def row(name, outcome, **settings):
    return Row(name, "merge", 7, outcome, command=f"lora-export merge '{name}'", **settings)


ROWS = (
    row("held", "held", verdict=PROVED, seconds=2.0, report=Report("merge", checks=CHECKS[:1],
                                                                   files=FILES)),
    row("cached", "held", verdict=PROVED, seconds=2.0, cached=True, report=Report("merge")),
    row("expected", "held", status=4, verdict=REFUSED, report=Report("merge", checks=CHECKS)),
    row(NASTY, "failed", status=5, verdict=REFUSED, cause=f"cause of {NASTY}", seconds=1.5,
        report=Report("merge", checks=CHECKS, problems=(PROBLEM,))),
    row("error", "error", status=3, verdict=Verdict("REFUSED", "no such file"),
        cause="no such file", report=Report("merge", problems=(PROBLEM,))),
    row("bug", "bug", status=1, cause="a bug", traceback="Traceback\n  of it"),
    row("skipped", "skipped", cause="not installed: hf"),
)  # fmt: skip
UNCHANGED = row("alone", "held", verdict=Verdict("UNCHANGED", "every digest is the manifest's"))
RESULT = SuiteResult(Path("suite.toml"), ROWS, left=2)


def valid(element):
    children, needed = SCHEMA[element.tag]
    assert needed <= set(element.keys()), element.tag
    places = [children.index(child.tag) for child in element]
    assert places == sorted(places), element.tag
    for child in element:
        valid(child)


def test_junit_has_the_schemas_form_and_unique_names():
    root = ET.fromstring(junit_xml(RESULT))  # noqa: S314 - our own
    valid(root)
    cases = [*root.iter("testcase")]
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(names)) == len(names)
    assert ("held", "merge verdict") in names
    assert ("held", "merge model.merged-unmerged") in names
    for suite in [root, *root]:
        found = [*suite.iter("testcase")]
        kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
        counts = {key: sum(1 for _ in suite.iter(tag)) for key, tag in kinds.items()}
        assert {key: int(suite.get(key)) for key in kinds} == counts
        assert int(suite.get("tests")) == len(found)


@pytest.mark.parametrize(("stopped", "kind"), [(130, "error"), (0, "skipped")])
def test_junit_has_the_rows_that_were_not_run(stopped, kind):
    root = ET.fromstring(junit_xml(SuiteResult(Path("s"), ROWS[:1], 3, stopped)))  # noqa: S314
    valid(root)
    case = root.find("testsuite[@name='rows not run']/testcase")
    assert case.get("name") == "3 rows not run"
    assert [child.tag for child in case] == [kind]
    assert root.get("errors" if stopped else "skipped") == "1"


def test_junit_tells_failures_from_errors_and_has_texts_and_figures():
    root = ET.fromstring(junit_xml(RESULT))  # noqa: S314 - our own
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites)[:-1] == [f"{one.case} [merge]".replace("\x1b", "\\x1b").replace(
        "\ud800", "\\xd800") for one in ROWS]  # fmt: skip
    failed, error, bug = [*root][3:6]
    assert [child.tag for child in failed.find("testcase")] == ["failure"]
    assert [child.tag for child in error.find("testcase")] == ["error"]
    assert bug.find("testcase/error").text.endswith(
        "Traceback\n    of it\n  $ lora-export merge 'bug'"
    )
    names = [case.get("name") for case in failed.iter("testcase")]
    keys = ["verdict", "model.merged-unmerged", "model.merged-unmerged-2", "manifest.digests"]
    assert names == [f"merge {key}" for key in keys]
    assert "at \\x00place\nlook" in failed.findall("testcase/failure")[1].text
    assert [*suites["expected [merge]"].iter("failure")] == []
    held = {one.get("name"): one.get("value") for one in suites["held [merge]"].iter("property")}
    assert held["sha256:merged.safetensors"] == "ab" * 32
    assert held["bytes:merged.safetensors"] == "12"
    assert held["worst:model.merged-unmerged"] == "1e-06"
    assert held["share"] == "0.06"
    assert held["outcome"] == "held"
    assert suites["cached [merge]"].get("time") == "0.000"


def test_the_text_begins_with_a_verdict_and_ends_with_commands():
    lines = suite_text(RESULT).splitlines()
    assert lines[0] == "FAILED: 3 of 9 rows do not hold, 1 skipped, 1 cached, 2 not run"
    assert "  holds    held" in lines[2]
    assert lines[2].split() == ["holds", "held", "merge", "6", "%", "2.0", "s", "PROVED"]
    assert lines[3].split()[-2:] == ["cached", "PROVED"]
    assert lines[4].endswith("REFUSED, as expected")
    assert f"FAILED {shown(NASTY)}, merge: cause of {shown(NASTY)}" in suite_text(RESULT)
    assert "\n  here: no such file\n    -> look elsewhere\n  $ lora-export" in suite_text(RESULT)
    assert "skipped skipped, merge: not installed: hf" in lines
    few = suite_text(SuiteResult(Path("my suite.toml"), ROWS[4:5]))
    assert few.endswith("\n\nnext: lora-export parity 'my suite.toml' --case error")


VERDICTS = {
    "PROVED: 2 rows hold, to 6 % of the allowed error, 1 cached": (ROWS[:2], 0, 0),
    "PROVED: 2 rows hold, to 6 % of the allowed error, 1 refused, as expected": (
        (ROWS[0], ROWS[2]),
        0,
        0,
    ),
    "PROVED: 2 rows hold, to 6 % of the allowed error, 1 by its manifest alone": (
        (ROWS[0], UNCHANGED),
        0,
        0,
    ),
    "UNCHANGED: 2 rows hold, 2 by their manifests alone": ((UNCHANGED,) * 2, 0, 0),
    "HOLDS: 1 row holds, 1 refused, as expected": (ROWS[2:3], 0, 0),
    "NOT PROVED: no row was run, 1 skipped": (ROWS[6:], 0, 0),
    "FAILED: 1 of 1 row does not hold": (ROWS[3:4], 0, 0),
    "INTERRUPTED: 1 of 4 rows hold, 3 not run": (ROWS[:1], 3, 130),
}


@pytest.mark.parametrize("text", VERDICTS)
def test_the_verdict_of_a_suite(text):
    rows, left, stopped = VERDICTS[text]
    assert suite_verdict(SuiteResult(Path("s"), rows, left, stopped)) == text


@pytest.mark.parametrize("share", [math.inf, math.nan])
@pytest.mark.parametrize("outcome", ["held", "failed"])
def test_a_share_that_is_no_number_is_printed(share, outcome):
    verdict = Verdict("REFUSED", "an output has no finite value", share)
    check = Check("merged = unmerged", False, share, 1e-5, level="model")  # noqa: FBT003
    one = row("inf", outcome, status=5, verdict=verdict, report=Report("merge", checks=(check,)))
    result = SuiteResult(Path("s"), (ROWS[0], one))
    if outcome == "held":
        assert "to 6 % of the allowed error" in suite_text(result)
    assert "times" in suite_text(result, verbose=True)
    assert "times" in suite_markdown(result)
    assert junit_xml(result)
    for form in ("html", "md"):
        assert rendered_suite(
            "suite", suite_verdict(RESULT), [page_row(row) for row in result.rows], form
        )


def test_the_summary_holds_no_markup_of_a_name():
    text = suite_markdown(RESULT)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["**FAILED**", "**ERROR**",
                                                                  "**BUG**"]  # fmt: skip
    assert len({line.count("|") for line in table}) == 1
    assert "ca&#92;x1bse&#124;&#60;b&#62;&#38;" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "name", ["@everyone", "#1", "https://x.example/", "<img src=x>", "a\u202eb"]
)
def test_the_summary_links_no_name(name):
    """GitHub makes mentions, references and links of plain text."""
    one = row(name, "failed", status=5, verdict=REFUSED, cause=name)
    text = suite_markdown(SuiteResult(Path("s"), (one,)))
    for line in text.split("```")[0].splitlines():
        assert name not in line


@pytest.mark.parametrize("form", ["html", "md"])
def test_the_page_has_every_row_with_its_own_verdict(form):
    page = rendered_suite("suite", suite_verdict(RESULT), [page_row(one) for one in ROWS], form)
    assert "<script" not in page
    assert "<b>" not in page
    assert "3 of 9 rows do not hold, 1 skipped, 1 cached, 2 not run" in page
    assert page.count("PROVED") == 2
    for words in ("as expected", "; cached", "not installed: hf", "a bug"):
        assert words in page, words


def test_githubs_summary_is_below_its_limit(tmp_path):
    many = tuple(row(f"case {n}", "failed", status=5, verdict=REFUSED, cause="x" * 900,
                     report=Report("merge", checks=CHECKS)) for n in range(4000))  # fmt: skip
    place = tmp_path / "summary.md"
    place.write_text("before\n")
    environment = {"GITHUB_STEP_SUMMARY": str(place)}
    assert write_summary(SuiteResult(Path("s"), many), environment) == ""
    text = place.read_text()
    assert text.startswith("before\n## FAILED")
    assert place.stat().st_size < 1_000_000
    shown = text.count("| **FAILED** |")
    assert f"\n{4000 - shown:,} rows are not shown" in text
    some = SuiteResult(Path("s"), many[:1500])
    place.write_text("")
    assert write_summary(some, environment) == ""
    assert place.stat().st_size < 1_000_000
    assert re.search(r"The details of [\d,]+ rows are not shown", place.read_text())
    assert write_summary(RESULT, {}) == ""
    assert "could not be written" in write_summary(RESULT, {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_githubs_annotations_are_escaped_and_ten():
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(Path.cwd())}
    lines = [*row_annotations(RESULT, environment)]
    assert len(lines) == 3
    assert lines[0].startswith("::error file=suite.toml,line=7,title=ca\\x1bse|<b>&")
    assert r"\n%25%3A%2C%2C merge%3A FAILED::cause of " in lines[0]
    assert "%0A$ lora-export" in lines[0]
    assert lines[0].endswith(r"\n%25:,'")
    assert all(line.isprintable() for line in lines)
    assert all("\n" not in line for line in lines)
    many = SuiteResult(Path("s"), ROWS[3:4] * 20)
    assert len([*row_annotations(many, environment)]) == 10
    assert [*row_annotations(many, {})] == []


@pytest.fixture
def outside(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def call(*words, **settings):
    return CliRunner().invoke(main, ["parity", *map(str, words)], **settings)


def test_the_command(place, outside):
    suite = place.write(f"format = 1\n{MERGE}")
    files = {name: place.folder / f"out.{name}" for name in ("xml", "md", "html")}
    done = call(suite, "--junit", files["xml"], "--report", files["md"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("PROVED: 1 row holds, to ")
    assert re.fullmatch(r"tiny, merge: holds \(\d+\.\d s\)\n", done.stderr)
    assert files["xml"].read_bytes().startswith(b"<?xml")
    assert "PROVED: 1 row holds, to" in files["md"].read_text()
    again = call(suite, "--json", "--report", files["html"], "--junit", files["xml"])
    document = json.loads(again.stdout)
    assert (document["ok"], document["status"], document["left"]) == (True, 0, 0)
    assert document["rows"][0]["cached"] is True
    assert document["rows"][0]["verdict"]["word"] == "PROVED"
    assert files["html"].read_text().startswith("<!doctype html>")
    quiet = call(suite, "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    verbose = call(suite, "-v")
    assert "merged elements" in verbose.stdout


def test_a_skipped_row_is_said_though_quiet(place, outside):
    done = call(place.write(f'format = 1\n{MERGE}extras = ["hff"]\n'), "-q")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "note: 1 row skipped; --strict fails then\n"
    assert "not installed: hff (did you mean hf?)" in call(place.folder / "suite.toml").stdout


@pytest.mark.parametrize(("case", "status"), [(MERGE, 7), (f"{MERGE}require = ['model']\n", 5)])
def test_a_report_that_cannot_be_written_hides_no_row(case, status, place, outside, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr("lora_export.suites.printing.written.junit_xml", refuse)
    page = place.folder / "out.md"
    done = call(
        place.write(f"format = 1\n{case}"), "--junit", place.folder / "x.xml", "--report", page
    )
    assert done.exit_code == status, done.output
    assert "tiny, merge" in done.stderr
    assert "error: a report could not be written: no space left\n" in done.stderr
    assert done.stdout.startswith("PROVED" if status == 7 else "FAILED")
    assert page.exists()


def test_the_command_fails_and_tells_github(place, tmp_path):
    suite = place.write(f"format = 1\n{CASE.format('no alpha')}")
    summary = tmp_path / "summary.md"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = call(suite, "-q", env=env)
    assert done.exit_code == 2
    assert done.stdout.startswith("FAILED: 1 of 1 row does not hold")
    assert "::error file=" in done.stderr
    assert summary.read_text().startswith("## FAILED")


WRONG = {
    ("gone.toml",): 3,
    ("suite.toml", "other.toml"): 2,
    ("suite.toml", "--case", "gone"): 2,
    ("suite.toml", "--report", "page.pdf"): 2,
    ("suite.toml", "--junit", "."): 6,
    ("suite.toml", "--junit", "gone/out.xml"): 6,
    ("suite.toml", "--junit", "base.safetensors"): 6,
    ("suite.toml", "--junit", "suite.toml"): 6,
    ("suite.toml", "--junit", "out.md", "--report", "./out.md"): 6,
    ("suite.toml", "-o", "x.toml"): 2,
    ("wrong.toml",): 2,
    ("--init", "base.safetensors"): 2,
    ("--init", "base.safetensors", "lora.safetensors", "-x"): 2,
    ("--init", "gone", "lora.safetensors"): 3,
}


@pytest.mark.parametrize("words", WRONG)
def test_what_the_command_refuses(words, place, monkeypatch, outside):
    monkeypatch.chdir(place.folder)
    place.write(f"format = 1\n{MERGE}")
    place.write("format = 1\n", "wrong.toml")
    done = call(*words)
    assert done.exit_code == WRONG[words], done.output
    assert done.stdout == "" or done.stdout.startswith("REFUSED")


def test_options_of_other_commands_are_not_those_of_a_suite(place, tmp_path, outside):
    """A page, strictness and an output that are meant for merges change no run of a suite."""
    skipped = place.write(f"format = 1\n{MERGE}extras = ['no-such-package-xyz']\n")
    page = tmp_path / "page.html"
    names = {"REPORT": str(page), "STRICT": "1", "OUTPUT": str(tmp_path / "out")}
    done = call(skipped, env={f"LORA_EXPORT_{name}": value for name, value in names.items()})
    assert done.exit_code == 0, done.output
    config = tmp_path / "options.toml"
    config.write_text("strict = true\nreport = 'page.html'\noutput = 'out'\n")
    assert call(skipped, "--config", config).exit_code == 0
    assert not page.exists()
    config.write_text("[parity]\nstrict = true\nreport = 'page.html'\n")
    assert call(skipped, "--config", config).exit_code == 5
    assert page.exists()
    assert call(skipped, "--strict").exit_code == 5


def test_a_first_suite(place, monkeypatch, outside):
    monkeypatch.chdir(place.folder)
    (place.folder / "suites").mkdir()
    words = ("--init", "base.safetensors", "lora.safetensors")
    done = call(*words, "-o", "suites/mine.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "wrote suites/mine.toml, and mine.schema.json for editors\n\n"
        "next: lora-export parity suites/mine.toml\n"
    )
    assert "note: fill in --alpha ALPHA first: no file holds it" in done.stderr
    suite = place.folder / "suites" / "mine.toml"
    text = suite.read_text()
    assert text.startswith("#:schema mine.schema.json\n")
    assert json.loads((place.folder / "suites" / "mine.schema.json").read_text())["title"]
    suite.write_text(text.replace("# alpha = ALPHA", "alpha = 4"))
    assert call(suite).exit_code == 0
    assert call(*words, "-o", "suites/mine.toml").exit_code == 6
