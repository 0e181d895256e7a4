"""The page as a document: what it holds, in which order, and that it is sound and harmless."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import page_reports
import pytest

from lora_export.errors import FitError
from lora_export.records import Check
from lora_export.report.page.frame import HTML_START, MARKDOWN_START
from lora_export.report.page.rendered import rendered
from lora_export.report.page.suite_page import rendered_suite
from lora_export.report.result import Report, refused

EVIL = "<script>alert(1)</script>\"'><img src=x>\u202e\x00\x1b[2J|`*_[x](http://evil.example)@who\udcff"
VOID = {"meta", "link", "br"}
MOST = 300_000


def suite(form: str, text: str = "") -> str:
    return rendered_suite(
        f"suite.toml {text}", page_reports.SENTENCE, page_reports.rows(text), form
    )


PAGES = {
    "proved": lambda form, text="": rendered(
        page_reports.proved(text), form, page_reports.origin(text)
    ),
    "failed": lambda form, text="": rendered(page_reports.failed(text), form),
    "unfit": lambda form, text="": rendered(page_reports.unfit(text), form),
    "lowered": lambda form, text="": rendered(page_reports.lowered(), form),
    "planned": lambda form, text="": rendered(Report("merge", f"out{text}", dry_run=True), form),
    "suite": suite,
}


class Page(HTMLParser):
    """Reads a page; refuses an element that is closed in the place of another."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, *tags):
        return [(tag, attrs) for tag, attrs in self.seen if tag in tags]


@pytest.fixture(params=PAGES)
def name(request):
    return request.param


@pytest.mark.parametrize("text", ["", EVIL])
def test_a_page_is_sound(name, text):
    page = PAGES[name]("html", text)
    assert page.startswith(HTML_START)
    found = Page(page)
    headings = [int(tag[1]) for tag, _ in found.all("h1", "h2", "h3")]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(headings))
    keys = [attrs["id"] for _, attrs in found.seen if "id" in attrs]
    assert len(set(keys)) == len(keys)
    links = [attrs["href"] for _, attrs in found.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(keys)
    labelled = [attrs["aria-labelledby"] for _, attrs in found.seen if "aria-labelledby" in attrs]
    assert set(labelled) <= set(keys)
    assert all(
        attrs.get("aria-label") if attrs.get("role") == "img" else attrs["aria-hidden"] == "true"
        for _, attrs in found.all("svg")
    )
    assert all(attrs.get("scope") in {"row", "col", "rowgroup"} for _, attrs in found.all("th"))
    [(_, top)] = found.all("html")
    assert top["lang"] == "en"


@pytest.mark.parametrize("text", ["", EVIL])
def test_a_page_needs_nothing_from_elsewhere(name, text):
    found = Page(PAGES[name]("html", text))
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "use", "image"}
    for tag, attrs in found.seen:
        assert not any(key.startswith("on") for key in attrs)
        address = attrs.get("src") or attrs.get("href")
        assert address is None or address.startswith("#") or (tag, address) == ("link", "data:,")
    assert "url(" not in PAGES[name]("html", "")
    assert "@import" not in PAGES[name]("html", "")
    policies = [attrs["content"] for _, attrs in found.all("meta") if "http-equiv" in attrs]
    assert policies[0].startswith("default-src 'none'")


def test_a_hostile_name_is_shown_in_every_place_and_does_nothing():
    page = PAGES["proved"]("html", EVIL)
    plain = Page(PAGES["proved"]("html", "NAME"))
    found = Page(page)
    assert found.text.count("@who\\udcff") == plain.text.count("NAME") > 20
    assert [tag for tag, _ in found.seen] == [tag for tag, _ in plain.seen]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f]", page)


@pytest.mark.parametrize("text", ["", EVIL])
def test_markdown_holds_no_mark_up_of_a_name(name, text):
    page = PAGES[name]("md", text)
    assert page.startswith(MARKDOWN_START)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f]", page)
    tags = set(re.findall(r"<(\w+)", page))
    assert tags <= {"code", "br", "sub", "details", "summary"}
    assert "](http" not in page
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_sections_stand_in_the_order_of_a_reader_s_questions():
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", PAGES["proved"]("html"))
    assert titles == [
        "The proof in one picture",
        "How large the update is",
        "What rounding left of the adapter",
        "Sizes before and after",
        "What the models say",
        "All checks",
        "Warnings",
        "What it is made of",
        "Next",
    ]


def test_a_proved_merge_says_so_first():
    found = Page(PAGES["proved"]("html")).text
    assert found.index("PROVED") < found.index("The proof in one picture")
    for words in (
        "9 % of what is allowed",
        "160,000 times what is allowed",
        "Each of 29 adapted tensors has one.",
        "99.9 %",
        "240.3 kB",
        "not hashed",
        "cd" * 32,
        "3.11.9",
        "Outputs of ONNX Runtime",
    ):
        assert words in found


def test_a_refusal_gives_its_cause_with_three_examples():
    for form in ("html", "md"):
        page = PAGES["failed"](form)
        assert "REFUSED" in page
        assert "4 of 28 modules have half a factor" in page
        assert re.search(r"layers\.2\.q</code> and 1 more", page)
        assert "layers.3.q</code>," not in page
        assert "120,000 times" in page or "110,000 times" in page
    unfit = Page(PAGES["unfit"]("html")).text
    assert "wrong base 2" in unfit
    assert "wrong base 3" not in unfit
    assert "and 2 problems more" in unfit


def test_of_wrong_weights_nothing_is_said_of_rounding():
    report = page_reports.proved()
    wrong = Check("scaling", passed=False, worst=1.0, tolerance=0.001, level="weights")
    failed = replace(report, checks=(*report.checks, wrong))
    for form, words in (("html", "What rounding left"), ("md", "**Rounding:**")):
        assert words in rendered(report, form)
        assert words not in rendered(failed, form)


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_cause_is_told_once(form):
    page = rendered(refused("merge", FitError("an odd base", where="base", hint="a hint")), form)
    assert page.count("an odd base") == 1
    assert "a hint" in page


@pytest.mark.parametrize("form", ["html", "md"])
def test_the_same_report_gives_the_same_bytes(name, form):
    assert PAGES[name](form) == PAGES[name](form)


def test_a_page_has_no_seconds():
    report = page_reports.proved()
    timed = Report(report.command, facts={"seconds": {"merge": 12.345, "total": 12.345}})
    assert "12.3" not in rendered(timed, "html") + rendered(timed, "md")


@pytest.mark.parametrize("text", ["", "x" * 5_000, "<&\u202e" * 1_000])
def test_a_thousand_modules_are_below_300_kb(text):
    report = page_reports.proved(text, layers=143)
    assert len(report.facts["update_sizes"]) == 1_002
    for form in ("html", "md"):
        assert len(rendered(report, form, page_reports.origin(text)).encode()) < MOST


def test_ten_thousand_kinds_and_layers_are_below_300_kb():
    sizes = {f"m.{n % 700}.k{n}.w": {"update": 1.0, "weight": n + 1.0} for n in range(20_000)}
    sizes |= {f"m.{n}.same.w": {"update": 1.0, "weight": 2.0} for n in range(5_000)}
    sizes |= {f"m.{n}.{k}.w": {"update": 9.0, "weight": 1.0} for n in range(700) for k in range(40)}
    report = Report("merge", checks=page_reports.checks(), facts={"update_sizes": sizes})
    for form in ("html", "md"):
        assert len(rendered(report, form).encode()) < MOST


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_refusal_shows_the_wrong_modules_and_what_to_do(form):
    found = page_reports.failed()
    assert "as planned" not in rendered(found, form)
    row = {"module": "layers.3.q", "factors": [2.0], "cosine": 0.5, "what": "holds twice"}
    wrong = Check("merged elements", passed=False, worst=9, tolerance=1, level="weights")
    facts = {"modules": [row], "update_sizes": page_reports.sizes()}
    page = rendered(replace(found, checks=(wrong,), facts=facts), form)
    for words in ("by sampled rows", "what was found", "holds twice", "0.500", "as planned"):
        assert words in page
    assert page.index("Wrong modules") < page.index("How large the update is")
    assert "hint" in page[page.rindex("Next") :]
    assert ("no output was compared" in page) is (form == "html")
