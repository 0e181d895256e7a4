from __future__ import annotations

from math import inf, nan

import page_reports
import pytest

from lora_export.records import Check
from lora_export.report.page.measures import (
    measures_of,
    of_allowed,
    of_bytes,
    share_of_weight,
    size,
)
from lora_export.report.result import Report


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.62e-6, "2.6 \u00d7 10\u207b\u2076"), (0.0123, "0.012"), (6.1, "6.1"),
     (1234.5, "1,234"), (3e7, "3.0 \u00d7 10\u2077"), (inf, "\u221e"), (nan, "NaN"),
     (-0.5, "-0.5")],
)  # fmt: skip
def test_a_size_has_two_digits(value, text):
    assert size(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1e-6, "1.0 \u00d7 10\u207b\u2074 %"), (0.00012, "0.012 %"), (0.0312, "3.1 %"),
     (0.45, "45 %"), (1.2, "120 %"), (inf, "\u221e")],
)  # fmt: skip
def test_a_share_of_the_weight(share, text):
    assert share_of_weight(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 % of"), (0.09, "9 % of"), (3.2, "320 % of"), (12.0, "12 times"),
     (116_666.0, "120,000 times"),     (3.4e7, "34.0 million times"), (inf, "\u221e times")],
)  # fmt: skip
def test_an_error_is_a_share_or_many_times_of_what_is_allowed(share, text):
    assert of_allowed(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(712, "712 bytes"), (240_300, "240.3 kB"), (14_200_000_000, "14.2 GB")]
)
def test_bytes_have_a_unit(number, text):
    assert of_bytes(number) == text


def test_the_worst_output_is_shown():
    noise = [{**page_reports.NOISE, "output": name, "noise": at} for at, name in enumerate("ab")]
    checks = (
        Check("merged", passed=True, worst=1.0, tolerance=10.0, where="probe 0, a[1]",
              level="model"),
        Check("runtime", passed=True, worst=4.0, tolerance=10.0, where="probe 0, b[3]",
              level="runtime"),
        Check("elements", passed=True, worst=0.99, tolerance=1.0, level="weights"),
    )  # fmt: skip
    found = measures_of(Report("onnx", checks=checks, facts={"noise": noise}))
    assert (found.output, found.noise, found.error, found.check) == ("b", 1.0, 4.0, "runtime")


def test_an_error_that_is_no_number_is_the_worst():
    checks = tuple(
        Check(str(worst), passed=False, worst=worst, tolerance=1.0, level="model")
        for worst in (5.0, nan, 7.0)
    )
    found = measures_of(Report("merge", checks=checks, facts={"noise": [page_reports.NOISE]}))
    assert found.check == "nan"
    assert not found.passed


def test_without_a_run_of_the_model_there_is_nothing_to_show():
    assert measures_of(Report("merge", checks=page_reports.checks())) is None
    assert measures_of(Report("merge", facts={"noise": [page_reports.NOISE]})) is None
