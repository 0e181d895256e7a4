from __future__ import annotations

from math import inf

import numpy as np
import pytest

from lora_export.errors import UsageError
from lora_export.report.sentences import failed_sentence, named_sentence, passed_words
from lora_export.verification.model.tolerance import EPS, FACTOR, OutputTolerance, Tolerance, derive

REFERENCE = np.array([1.0, -4.0], np.float32)


def runs(*shifts, name="y"):
    """One probe a shift: the reference plus the shift."""
    return [{name: REFERENCE + np.float32(shift)} for shift in shifts]


def make(*, rounding=0.0, ulp=0.0, split=0.0, effect=1.0, **override):
    exact = [{"y": REFERENCE.astype(np.float64) + shift} for shift in (0.0, rounding)]
    return derive(
        float32=runs(0, 0), float64=exact, nudged=runs(0, ulp), split=runs(0, split),
        base=runs(0, effect), merged=runs(0, 0), **override,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("noise", "floor"),
    [
        ({"rounding": 0.25}, 0.25),
        ({"ulp": 0.5}, 0.5),
        ({"split": 0.125}, 0.125),
        ({"rounding": 0.25, "ulp": 0.5, "split": 0.125}, 0.5),
    ],
)
def test_the_floor_is_the_largest_noise(noise, floor):
    [found] = make(**noise).outputs
    assert found.floor == floor
    assert found.allowed == FACTOR * floor
    assert (found.output, found.scale, found.effect) == ("y", 4.0, 1.0)


def test_without_noise_a_few_ulps_of_the_largest_value_are_allowed():
    [found] = make().outputs
    assert found.floor == 0
    assert found.allowed == FACTOR * 4 * EPS * 4.0


@pytest.mark.parametrize(
    ("override", "allowed"),
    [({"atol": 0.5}, 0.5), ({"rtol": 0.1}, 0.4), ({"atol": 0.5, "rtol": 0.1}, 0.9),
     ({"atol": 0.0}, 0.0)],
)  # fmt: skip
def test_the_user_may_allow_something_else(override, allowed):
    [found] = make(rounding=0.25, **override).outputs
    assert found.allowed == pytest.approx(allowed)
    assert found.rounding == 0.25


@pytest.mark.parametrize("override", [{"atol": -1.0}, {"rtol": float("nan")}, {"atol": inf}])
def test_a_tolerance_that_is_none_is_refused(override):
    with pytest.raises(UsageError, match="is no tolerance"):
        make(**override)


@pytest.mark.parametrize(
    ("shift", "passed"), [(0.0, True), (0.5, True), (1.0, True), (1.25, False), (np.nan, False)]
)
def test_a_check_passes_up_to_the_tolerance(shift, passed):
    tolerance = make(rounding=0.1, atol=1.0)
    check = tolerance.check("run", runs(0, 0), runs(0, shift))
    assert check.passed is passed
    assert (check.name, check.tolerance) == ("run", 1.0)
    if shift:
        assert check.where == "probe 1, y[0]"


def test_the_share_and_the_noise_are_told():
    tolerance = make(rounding=0.0625)
    check = tolerance.check("run", runs(0, 0), runs(0, 0.125))
    assert passed_words(check) == "20 % of what is allowed (0.12 of 0.62)"
    assert check.basis.startswith("noise: rounding 6.2e-02")
    given = make(atol=1.0).check("run", runs(0), runs(0.5))
    assert (passed_words(given), given.basis) == ("50 % of what is allowed (0.5 of 1)", "given")
    equal = tolerance.check("run", runs(0), runs(0))
    assert (passed_words(equal), equal.basis[:5]) == ("equal", "noise")


def test_a_failed_comparison_is_a_sentence():
    check = make(atol=1.0).check("run", runs(0, 0), runs(0, 3))
    told = "the outputs differ at probe 1, y[0] by 3, 3 times what is allowed (1)"
    assert failed_sentence(check) == told
    assert named_sentence(check) == f"{told} (check: run)"


def test_the_output_nearest_its_own_tolerance_is_told():
    tight = OutputTolerance("tight", 0, 0, 0, scale=1, effect=1, override=0.1)
    loose = OutputTolerance("loose", 0, 0, 0, scale=1, effect=1, override=10.0)
    tolerance = Tolerance((loose, tight))
    reference = {"tight": REFERENCE, "loose": REFERENCE}
    seen = {"tight": REFERENCE + np.float32(0.5), "loose": REFERENCE + np.float32(5)}
    check = tolerance.check("run", [reference], [seen])
    assert not check.passed
    assert (check.where, check.worst, check.tolerance) == ("probe 0, tight[0]", 0.5, 0.1)


@pytest.mark.parametrize(
    ("actual", "detail"),
    [
        ([], "0 runs against 1"),
        (runs(0, 0), "2 runs against 1"),
        ([{}], "output is missing"),
        ([{"y": REFERENCE[:1]}], "shape"),
        ([{"y": REFERENCE, "z": REFERENCE}], "no such output"),
    ],
)
def test_a_difference_in_structure_fails(actual, detail):
    check = make().check("run", runs(0), actual)
    assert not check.passed
    assert check.worst == inf
    assert detail in check.detail


def test_nothing_to_compare_is_no_proof():
    assert not make().check("run", [], []).passed


@pytest.mark.parametrize(
    ("numbers", "passed"),
    [
        ({"effect": 1.0}, True),
        ({"effect": 0.0}, False),
        ({"effect": 1e-6}, False),
        ({"effect": 1.0, "rounding": 0.125}, False),
        ({"effect": 1.0, "atol": 2.0}, False),
        ({"effect": 1.0, "atol": 1e-9}, True),
        ({"effect": 1.0, "atol": 0.0, "ulp": 0.125}, False),
    ],
)
def test_an_effect_within_the_tolerance_makes_the_proof_vacuous(numbers, passed):
    check = make(**numbers).effect_check()
    assert check.passed is passed
    assert ("vacuous" in check.detail) is not passed


def test_one_affected_output_is_enough():
    still = OutputTolerance("hidden", 0, 0, 0, scale=1, effect=0.0)
    moved = OutputTolerance("logits", 0, 0, 0, scale=1, effect=1.0)
    check = Tolerance((still, moved)).effect_check()
    assert check.passed
    assert check.where == "logits"


def test_outputs_that_cannot_be_split_have_no_batch_noise():
    found = derive(float32=runs(0), float64=runs(0), nudged=runs(0), split=[{}], base=runs(1),
                   merged=runs(0))  # fmt: skip
    assert found.outputs[0].batch_split == 0


@pytest.mark.parametrize(
    ("first", "masked", "passed", "words"),
    [
        (1.0, -inf, True, "5 % of what is allowed"),
        (1.0, np.nan, True, "5 % of what is allowed"),
        (np.nan, np.nan, False, "nothing but NaN"),
    ],
)
def test_masked_outputs_are_compared_and_nothing_but_nan_proves_nothing(
    first, masked, passed, words
):
    right, base = np.array([first, masked], np.float32), np.array([3.0, masked], np.float32)
    same = [{"y": right}]
    near = [{"y": right + np.float32(2 * EPS)}]
    tolerance = derive(float32=same, float64=near, nudged=same, split=[{}], base=[{"y": base}],
                       merged=same)  # fmt: skip
    check = tolerance.check("run", same, near)
    assert check.passed is passed
    assert words in (passed_words(check) if passed else check.detail)
    assert tolerance.effect_check().passed is passed


@pytest.mark.parametrize("other", [[1.0, 2.0], [np.nan, 2.0], [np.nan, np.nan]])
def test_nan_on_one_side_alone_fails(other):
    right, off = np.array([1.0, np.nan], np.float32), np.array(other, np.float32)
    same, there = [{"y": right}], [{"y": off}]
    runs = {"float32": same, "nudged": same, "split": [{}], "base": [{"y": right + 2}]}
    sound = derive(**runs, float64=same, merged=same)
    assert not sound.check("run", same, there).passed
    assert not sound.check("run", there, same).passed
    assert not derive(**runs, float64=there, merged=same).check("run", same, same).passed


def test_an_infinite_effect_and_an_infinite_noise_are_none():
    right, off = np.array([1.0, 2.0], np.float32), np.array([1.0, inf], np.float32)
    same, other = [{"y": right}], [{"y": off}]
    runs = {"float32": same, "float64": same, "nudged": same, "split": [{}], "merged": same}
    assert not derive(**runs, base=other).effect_check().passed
    noisy = derive(**{**runs, "nudged": other}, base=[{"y": right + 1}])
    assert not noisy.check("run", same, same).passed
    assert not noisy.effect_check().passed


def test_two_half_precision_outputs_may_be_neighbours():
    right = np.array([1.0, 2.0], np.float16)
    same = [{"y": right}]
    tolerance = derive(float32=same, float64=same, nudged=same, split=[{}],
                       base=[{"y": right + np.float16(1)}], merged=same)  # fmt: skip
    assert tolerance.check("run", same, [{"y": np.nextafter(right, np.float16(9))}]).passed
    assert not tolerance.check("run", same, [{"y": right + np.float16(0.1)}]).passed
