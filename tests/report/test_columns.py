from __future__ import annotations

import pytest

from lora_export.report.columns import first_names, first_rows


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        (["a", "b", "c", "d"], 1, "a and 3 more"),
    ],
)
def test_a_long_list_of_names_is_cut_short(names, most, text):
    assert first_names(names, most) == text


@pytest.mark.parametrize(
    ("count", "verbose", "shown", "more"),
    [(0, False, 0, 0), (8, False, 8, 0), (9, False, 8, 1), (9, True, 9, 0)],
)
@pytest.mark.parametrize("heading", [None, ["name", "value"]])
def test_a_long_table_is_cut_short(count, verbose, shown, more, heading):
    rows = [[f"row {number}", "x" * number] for number in range(count)]
    lines = first_rows(rows, verbose=verbose, heading=heading)
    top, body = lines[: bool(heading)], lines[bool(heading) :]
    assert [line.split() for line in top] == ([heading] if heading else [])
    assert [line.split()[1] for line in body[:shown]] == [str(number) for number in range(shown)]
    assert body[shown:] == ([f"  ... and {more} more (-v lists them)"] if more else [])
