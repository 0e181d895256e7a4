"""The loss of a lower precision: measured by output, and refused where it drowns the adapter."""

from math import inf

import numpy as np
import pytest

from lora_export.api.graph.recorded_graph import lossy_warnings
from lora_export.report.lowered import share_of_effect
from lora_export.verification.model.loss import Limits, decisions, loss_checks, measure

FULL = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], np.float32)
BASE = FULL + np.float32(0.5)


def losses(lowered, *, full=FULL, base=BASE, name="logits"):
    return measure([{name: full}], [{name: lowered} if lowered is not None else {}], [{name: base}])


def test_a_loss_is_measured():
    moved = FULL.copy()
    moved[0, 1] += 2
    (loss,) = losses(moved)
    assert (loss.agree, loss.places, loss.worst) == (1, 2, 2.0)
    assert loss.rms == pytest.approx((4 / 6) ** 0.5)
    assert loss.effect == pytest.approx(0.5)
    assert loss.relative == pytest.approx(loss.rms / loss.size)


@pytest.mark.parametrize(
    ("lowered", "limits", "failed"),
    [
        (FULL + 0.1, Limits(), []),
        (FULL + 0.6, Limits(), ["nearer"]),
        (FULL + 0.6, Limits(allow_lossy=True), []),
        (FULL + 0.1, Limits(atol=0.05), ["as far as allowed"]),
        (FULL + 0.1, Limits(atol=0.05, rtol=0.05), []),
        (FULL * np.nan, Limits(allow_lossy=True), ["finite"]),
        (np.where(FULL > 2, np.inf, FULL), Limits(allow_lossy=True), ["finite"]),
        (FULL[:1], Limits(allow_lossy=True), ["finite"]),
        (None, Limits(allow_lossy=True), ["finite"]),
    ],
)
def test_what_is_accepted(lowered, limits, failed):
    with np.errstate(invalid="ignore"):
        checks = loss_checks(losses(lowered), "int4", limits)
    found = [check.name for check in checks if not check.passed]
    if lowered is None or not np.isfinite(lowered).all() or lowered.shape != FULL.shape:
        assert any("finite" in name for name in found)
    else:
        assert len(found) == len(failed)
        assert all(word in name for word, name in zip(failed, found, strict=True))


def test_keys_and_values_need_only_be_finite_and_within_a_bound():
    """What is wrong with them shows in the logits of the next step."""
    name, inner = "present.0.key", frozenset(["present.0.key"])
    for limits, failed in (
        (Limits(), ["nearer"]),
        (Limits(inner=inner), []),
        (Limits(atol=0.1, inner=inner), ["as far as allowed"]),
    ):
        checks = loss_checks(losses(FULL + 0.6, name=name), "int8", limits)
        found = [check.name for check in checks if not check.passed]
        assert len(found) == len(failed)
        assert all(word in one for word, one in zip(failed, found, strict=True))
    with np.errstate(invalid="ignore"):
        checks = loss_checks(losses(FULL * np.nan, name=name), "int8", Limits(inner=inner))
    assert not checks[0].passed


def test_an_output_without_the_adapter_asks_for_nothing():
    checks = loss_checks(losses(FULL + 0.1, base=FULL), "int8", Limits())
    assert [check.name for check in checks] == ["int8: finite where float32 is"]


def test_one_score_among_many_is_a_part_as_well():
    full = np.ones((1, 10_000), np.float32)
    base = full.copy()
    base[0, 7] += 5e-4  # 5e-6 in the mean
    checks = loss_checks(losses(full + 0.1, full=full, base=base), "int4", Limits())
    assert [check.name for check in checks if not check.passed] == [
        "int4: nearer to merged than to base"
    ]


def test_equal_infinities_are_no_loss():
    masked = np.array([[-np.inf, 1.0]], np.float32)
    (loss,) = losses(masked, full=masked, base=masked)
    assert loss.worst == 0
    assert loss.size < inf


@pytest.mark.parametrize(
    ("name", "shape", "places"),
    [("logits", (2, 5, 7), 10), ("scores", (4, 1), 0), ("last_hidden_state", (2, 5, 7), 0),
     ("output", (), 0), ("output", (3,), 1)],
)  # fmt: skip
def test_where_a_class_is_chosen(name, shape, places):
    assert decisions(name, np.zeros(shape, np.float32)) == places


@pytest.mark.parametrize(("effect", "told"), [(0.0, []), (1e-7, []), (0.05, ["logits"])])
def test_an_output_that_the_adapter_leaves_alone_is_no_accepted_loss(effect, told):
    (loss,) = losses(FULL + np.float32(0.1), base=FULL + np.float32(effect))
    lowered = {"precision": "int8", "loss": [loss.facts()]}
    warned = [line.split(":")[0] for line in lossy_warnings([{"lowered": lowered}])]
    assert warned == told
    assert (share_of_effect(loss.facts()) is None) == (not told)
