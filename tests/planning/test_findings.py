"""Problems are raised all at once; what is unfit decides how, and equal ones are joined."""

import pytest

from lora_export.errors import FitError, UsageError
from lora_export.planning.findings import Findings, grouped
from lora_export.records import Problem

UNFIT, MISSING = Problem("has another shape", "a"), Problem("alpha is not in the file", "b")


def test_without_problems_the_plan_goes_on():
    found = Findings(choices=["a choice"], warnings=["a warning"])
    assert not found.has_problems
    found.stop_on_problems()


@pytest.mark.parametrize(
    ("unfit", "missing", "kind", "raised"),
    [
        ([UNFIT], [], FitError, [UNFIT]),
        ([], [MISSING], UsageError, [MISSING]),
        ([UNFIT], [MISSING], FitError, [UNFIT, MISSING]),
    ],
)
def test_everything_wrong_is_raised_at_once(unfit, missing, kind, raised):
    found = Findings(unfit=unfit, missing=missing)
    assert found.has_problems
    with pytest.raises(kind) as caught:
        found.stop_on_problems()
    assert type(caught.value) is kind
    assert list(caught.value.problems) == raised


PLACES = {
    "one": (["f: a"], "f: a"),
    "of one file": (["f: a", "f: b"], "f: a, b (2 places)"),
    "many of one file": (["f: a", "f: b", "f: c", "f: d"], "f: a, b, c, ... (4 places)"),
    "of two files": (["f: a", "g: b"], "f: a, g: b (2 places)"),
    "without files": (["a", "b"], "a, b (2 places)"),
}


@pytest.mark.parametrize(("places", "where"), PLACES.values(), ids=PLACES)
def test_the_same_problem_at_many_places_is_one(places, where):
    problems = [Problem("does not fit", place, "a hint", "--an-option") for place in places]
    assert grouped(problems) == [Problem("does not fit", where, "a hint", "--an-option")]


def test_problems_that_differ_in_anything_but_the_place_stay_apart():
    problems = [
        Problem("does not fit", "a"),
        Problem("does not fit", "b", "a hint"),
        Problem("does not fit", "c", asks="--alpha ALPHA"),
        Problem("is missing", "d"),
    ]
    assert grouped(problems) == problems
