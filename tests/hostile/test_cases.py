"""Every malformed input is refused by its class, within the limits, and nothing is left behind.

A default run tries a few inputs of each group; `-m hostile` tries all.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
from collections import Counter
from hashlib import sha256

import pytest
from hostile import json_cases, onnx_cases, other_cases, tensors_cases, torch_cases
from hostile.cage import run
from hostile.case import RIGHT, try_all
from hostile.pickle_file import GOOD, old_format, saved
from hostile.tensors_file import BASE, safetensors
from whole_run.sampling import VARIABLE

import lora_export

GROUPS = {
    "safetensors": tensors_cases, "JSON": json_cases, "torch": torch_cases, "ONNX": onnx_cases,
    "other": other_cases,
}  # fmt: skip
LEAST = {"safetensors": 250, "JSON": 500, "torch": 150, "ONNX": 80, "other": 100}
"""Malformed inputs of each group that there are at least."""

PARTS = 6
"""Tests that a group is divided into, for the workers of a run."""

SAMPLE = 4
"""Inputs of a group that a default run tries."""


@pytest.fixture(scope="session")
def imported():
    """Import what a call may need: it is no part of what reading an input costs."""
    import onnxruntime  # noqa: F401 - as above
    import transformers

    assert transformers.BertModel
    for module in pkgutil.walk_packages(lora_export.__path__, f"{lora_export.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def check(cases, folder, record_property):
    verdicts = try_all(cases, folder)
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])
    kinds = {True: Counter(), False: Counter()}
    for verdict in verdicts:
        kinds[RIGHT in verdict.case.expects][verdict.case.group] += 1
    value = {"malformed": dict(kinds[False]), "right": dict(kinds[True])}
    record_property("hostile cases", value)


@pytest.mark.hostile
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("group", GROUPS)
def test_malformed_inputs_are_refused(group, part, tmp_path, imported, record_property):
    check(GROUPS[group].cases()[part::PARTS], tmp_path, record_property)


@pytest.mark.parametrize("group", GROUPS)
def test_a_few_malformed_inputs_are_refused(group, tmp_path, imported, record_property):
    cases = [case for case in GROUPS[group].cases() if "bomb" not in case.name]
    draw = random.Random(f"{group} {os.environ.get(VARIABLE)}")
    check(draw.sample(cases, SAMPLE), tmp_path, record_property)


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_has_as_many_as_it_says(group):
    cases = GROUPS[group].cases()
    assert len({case.name for case in cases}) == len(cases)
    assert sum(RIGHT not in case.expects for case in cases) >= LEAST[group]


def right_ones():
    """What each group's inputs are made of, before anything in it is malformed."""
    yield "safetensors", tensors_cases.merging(safetensors(BASE))
    yield "torch", torch_cases.merging(saved(GOOD))
    yield "torch before 1.6", torch_cases.merging(old_format())
    yield "ONNX", onnx_cases.reading(lambda _folder: onnx_cases.model().SerializeToString())
    yield "ONNX with external data", onnx_cases.reading(onnx_cases._external())
    yield "undo", other_cases.restoring(json.dumps(other_cases._description()))
    yield "capture", other_cases.taking(lambda _cache, _entry: None)
    for file, (prepare, document) in json_cases.FILES.items():
        digest = sha256(safetensors(BASE)).hexdigest()
        text = json.dumps(document).replace(json_cases.DIGEST, digest)
        yield file, prepare(text.encode())


@pytest.mark.parametrize("prepare", [pytest.param(make, id=name) for name, make in right_ones()])
def test_what_they_are_made_of_is_accepted(prepare, tmp_path, imported):
    outcome = run(prepare(tmp_path), tmp_path)
    assert (outcome.kind, outcome.events) == (RIGHT, []), outcome.text
