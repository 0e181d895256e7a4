from __future__ import annotations

import re

import page_reports
import pytest

from lora_export.report.page.suite_page import Row, rendered_suite
from lora_export.report.result import Report


def test_the_failed_row_comes_first_and_is_shown_whole():
    page = rendered_suite("parity.toml", page_reports.SENTENCE, page_reports.rows(), "html")
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert titles[:2] == ["All rows", "shipped: verify "]
    order = [page.index(f"</span> {row}") for row in ("shipped", "golden", "chargpt", "must be")]
    assert order == sorted(order)
    assert '<p class="word">FAILED</p>' in page
    assert '<p class="text">1 of 4 rows does not hold, 1 skipped</p>' in page
    assert "lora-export verify" in page


def test_an_expected_refusal_holds():
    rows = [row for row in page_reports.rows() if row.holds]
    page = rendered_suite("parity.toml", "PROVED: 2 rows hold", rows, "html")
    assert '<section class="verdict ok"' in page
    assert "exit 4, as expected" in page


@pytest.mark.parametrize("form", ["html", "md"])
@pytest.mark.parametrize("word", ["NOT PROVED", "INTERRUPTED", "UNCHANGED", "FAILED"])
def test_what_is_not_proven_is_not_green(word, form):
    page = rendered_suite("parity.toml", f"{word}: 1 of 2 rows", [Row("one")], form)
    assert word in page
    first = page[: page.index("1 of 2 rows")]
    assert "\u2705" not in first
    assert 'class="verdict ok"' not in first


@pytest.mark.parametrize("form", ["html", "md"])
def test_seconds_are_shown_where_they_are_given(form):
    rows = page_reports.rows()
    assert "3.2" in rendered_suite("suite", page_reports.SENTENCE, rows, form)
    plain = [Row(row.title, row.report, holds=row.holds) for row in rows]
    assert "econds" not in rendered_suite("suite", page_reports.SENTENCE, plain, form)


def test_a_list_of_titles_and_reports_is_enough():
    rows = [Row("one", page_reports.proved()), Row("two", Report("verify", "x"))]
    for form in ("html", "md"):
        page = rendered_suite("suite", page_reports.SENTENCE, rows, form)
        assert "merged = base" in page
        assert "two" in page


def test_in_markdown_the_failures_open_on_a_click():
    page = rendered_suite("parity.toml", page_reports.SENTENCE, page_reports.rows(), "md")
    assert page.count("<details>") == page.count("</details>") == 2
    assert "\u274c FAILED: 1 of 4 rows does not hold, 1 skipped" in page
    assert page.count("<!-- lora-export report -->") == 1


def test_a_large_suite_stays_below_300_kb():
    rows = [Row(f"case {n}", page_reports.proved(layers=143)) for n in range(200)]
    for form in ("html", "md"):
        assert len(rendered_suite("suite", page_reports.SENTENCE, rows, form).encode()) < 300_000
