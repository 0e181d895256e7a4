"""Names of a wrapper or of another version are paired with the planned ones, if only one fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_export.records import Step, TensorRef, TensorSpec
from lora_export.verification.blame.diagnosis.tensor_names import pair

PLANNED = ["model.layers.0.q.weight", "model.layers.1.q.weight", "lm_head.weight"]


def ref(name, shape=(4, 3), dtype="F32"):
    return TensorRef(TensorSpec(name, dtype, shape), Path("x"), 0, 0)


def paired(names, separated=()):
    steps = tuple(Step(ref(name).spec, "copy", ref(name)) for name in PLANNED)
    plan = SimpleNamespace(steps=lambda: steps, separated=separated)
    return pair(plan, {one.spec.name: one for one in names})


CASES = {
    "as planned": (lambda name: name, []),
    "of PEFT": (lambda name: f"base_model.model.{name}", ["renamed"]),
    "of a compiled model": (lambda name: f"_orig_mod.{name}", ["renamed"]),
    "of transformers 5": (
        lambda name: name.replace("model.", "model.language_model."),
        ["renamed"],
    ),
    "of transformers 4": (lambda name: f"language_model.{name}", ["renamed"]),
    "with a layer under it": (
        lambda name: name.replace(".weight", ".base_layer.weight"),
        ["renamed"],
    ),
    "of a saved module": (
        lambda name: name.replace(".weight", ".modules_to_save.default.weight"),
        ["renamed"],
    ),
}


@pytest.mark.parametrize(("change", "codes"), CASES.values(), ids=CASES)
def test_names_are_paired(change, codes):
    found = paired([ref(change(name)) for name in PLANNED])
    assert [finding.code for finding in found.findings] == codes
    assert {name: one.spec.name for name, one in found.refs.items()} == {
        name: change(name) for name in PLANNED
    }


def test_two_names_that_both_fit_are_paired_with_neither():
    names = ["lm_head.weight", "a.model.layers.0.q.weight"]
    double = ["module.model.layers.1.q.weight", "base_model.model.layers.1.q.weight"]
    found = paired([ref(name) for name in (*names, *double)])
    codes = {finding.code: finding.names for finding in found.findings}
    assert codes["tensors-missing"] == tuple(PLANNED[:2])
    assert set(codes["tensors-added"]) == {names[1], *double}


def test_another_shape_and_another_dtype_are_findings_and_only_the_dtype_is_compared():
    found = paired(
        [ref(PLANNED[0], (5, 3)), ref(PLANNED[1], (3, 4)), ref(PLANNED[2], dtype="BF16")]
    )
    assert [finding.code for finding in found.findings] == [
        "resized",
        "stored-transposed",
        "other-dtype",
    ]
    assert list(found.refs) == [PLANNED[2]]


def test_a_head_that_is_tied_again():
    found = paired([ref(name) for name in PLANNED[:2]], separated=("lm_head.weight",))
    assert [(one.code, one.names) for one in found.findings] == [
        ("tied-wrongly", ("lm_head.weight",))
    ]
