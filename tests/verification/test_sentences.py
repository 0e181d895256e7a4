"""A failed check is a sentence where it is made, and a passed one shows no number that misleads."""

from __future__ import annotations

import re

import numpy as np
import pytest
from safetensors.torch import save_file

from lora_export.errors import VerificationError
from lora_export.onnx_export.file.external import count_check
from lora_export.records import Check, TensorSpec
from lora_export.report.sentences import failed_sentence, named_sentence, passed_words, times
from lora_export.verification.blame.mistakes import describe_names
from lora_export.verification.failure import refuse_failed
from lora_export.verification.files.manifest_check import check_outputs
from lora_export.verification.listed_check import listed_check
from lora_export.verification.model.loss import Limits, Loss, loss_checks
from lora_export.verification.runtime.generation import same_tokens

LOGITS = np.eye(4, dtype=np.float32)[None]
DIGEST = "the digest of the manifest"
LOST = "b.json, c.json are missing"
TOKENS = np.arange(4)[None]


def lost(**numbers):
    given = {"size": 1.0, "worst": 0.5, "rms": 0.25, "effect": 1.0, "farthest": 1.0}
    return Loss("y", **{**given, **numbers})


FAILED = {
    "a list": (
        listed_check("x", ["a", "b"], "2 files", fault="a, b are not as planned"),
        "a, b are not as planned",
    ),
    "faults of a graph": (
        count_check("x", [f"w{number}: is lost" for number in range(5)]),
        "w0: is lost; w1: is lost; w2: is lost; and 2 more",
    ),
    "tokens": (
        same_tokens([(LOGITS, TOKENS[:, ::-1])], 0.0),
        "4 of 4 tokens are not those of model.generate: text 0, row 0, token 0: 0 instead of 3",
    ),
    "the rounding outweighs": (
        loss_checks([lost(rms=2.0)], "int4", Limits())[-1],
        "the rounding outweighs what the adapter changes: it moves y by 2, and the adapter by 1",
    ),
    "a bound": (
        loss_checks([lost()], "int4", Limits(atol=0.1))[1],
        "y moves by 0.5, 5 times what is allowed (0.1)",
    ),
    "numbers that are missing": (
        loss_checks([lost(worst=float("inf"))], "fp16", Limits(allow_lossy=True))[0],
        "y: NaN or infinity, where the float32 model has a number",
    ),
    "without words": (
        Check("x", passed=False, worst=3, tolerance=2, where="y"),
        "the difference at y is 3, 1.5 times what is allowed (2)",
    ),
    "without words and without a tolerance": (
        Check("x", passed=False, worst=3, tolerance=0),
        "not everything is as it must be",
    ),
    "too little": (
        Check("x", passed=False, worst=1, tolerance=2, at_least=True),
        "1 was measured, and more than 2 is needed",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_check_is_a_sentence(name):
    check, sentence = FAILED[name]
    assert not check.passed
    assert failed_sentence(check).startswith(sentence)
    assert re.search(r": [\d.e+-]+, (allowed|needed)", failed_sentence(check)) is None
    with pytest.raises(VerificationError) as caught:
        refuse_failed([check], "out")
    [problem] = caught.value.problems
    assert problem.message == named_sentence(check)
    assert problem.message.endswith(f"(check: {check.name})")


PASSED = {
    "a list": (listed_check("x", [], "2 files", fault="never"), "2 files"),
    "faults of a graph": (count_check("x", [], "9 nodes"), "9 nodes"),
    "no words": (count_check("x", []), "as it must be"),
    "tokens": (same_tokens([(LOGITS, TOKENS)], 0.0), "4 tokens"),
    "equal": (Check("x", passed=True, worst=0, tolerance=2), "equal"),
    "measured": (
        Check("x", passed=True, worst=0.5, tolerance=2, detail="here"),
        "25 % of what is allowed (0.5 of 2), here",
    ),
    "at least": (
        Check("x", passed=True, worst=9, tolerance=2, detail="it moves y", at_least=True),
        "it moves y",
    ),
}


@pytest.mark.parametrize("name", PASSED)
def test_a_passed_check_tells_what_it_found(name):
    check, words = PASSED[name]
    assert check.passed
    assert passed_words(check) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1.25, "1.2 times"),
        (99, "99 times"),
        (35718.2, "35,718 times"),
        (float("inf"), "infinitely many times"),
    ],
)
def test_a_factor_has_no_exponent(number, words):
    assert times(number) == words


class Manifest:
    """What check_outputs reads of a manifest."""

    def __init__(self, **outputs):
        self.outputs = {name.replace("_", "."): digest for name, digest in outputs.items()}


@pytest.mark.parametrize(
    ("names", "listed", "sentences"),
    [
        (
            ["a.safetensors"],
            {"a_safetensors": "other"},
            ["", f"0 of 1 file still has {DIGEST}; a.safetensors has changed"],
        ),
        (
            ["a.safetensors"],
            {"a_safetensors": "other", "b_json": "1", "c_json": "2"},
            [
                "",
                f"0 of 3 files still have {DIGEST}; a.safetensors has changed and {LOST}",
            ],
        ),
        (
            ["a.safetensors", "b.safetensors"],
            {},
            ["a.safetensors, b.safetensors: not in the manifest, which lists 0 of 2 weight files"],
        ),
        ([], {}, ["no weight file is there"]),
    ],
)
def test_files_and_their_manifest(names, listed, sentences, tmp_path):
    for name in names:
        save_file({}, tmp_path / name)
    checks = check_outputs(tmp_path, Manifest(**listed))
    found = [failed_sentence(check) if not check.passed else "" for check in checks]
    assert found[: len(sentences)] == sentences


def test_names_that_are_not_planned():
    specs = {name: TensorSpec(name, "F32", (2,)) for name in "abc"}
    other = {**specs, "d": TensorSpec("d", "F32", (2,)), "a": TensorSpec("a", "F16", (2,))}
    del other["b"]
    assert describe_names(specs, other) == (
        "3 planned tensors: 1 stored as F16, where F32 is planned; 1 missing: b; 1 not planned: d"
    )
