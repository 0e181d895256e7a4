"""Whatever in a LoRA configuration chooses another layer or another base is merged or refused.

The lists are PEFT's own: a value or a member that a new version adds fails here.
"""

import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from peft import LoraConfig
from peft.tuners.lora import layer

from lora_export.dialects.peft.config import PeftConfig
from lora_export.dialects.peft.lora_refusals import STARTS, VARIANTS, refusals

FIELDS = {one.name: one for one in fields(LoraConfig)}
CHANGED = {"olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "lora_ga"}


def literals(annotation):
    found = set()
    for one in typing.get_args(annotation):
        found |= {one} if isinstance(one, str) else literals(one)
    return found


def starts():
    """The values that PEFT documents, and those that its layers compare with."""
    hints = typing.get_type_hints(LoraConfig)
    named = literals(hints["init_lora_weights"]) | set(
        FIELDS["init_lora_weights"].metadata["lora_variants"]
    )
    code = Path(layer.__file__).read_text()
    return named | set(re.findall(r'init_lora_weights(?:\.lower\(\))? == "(\w+)"', code))


def refused(**members):
    return refusals(PeftConfig(Path("adapter_config.json"), {"peft_type": "LORA", **members}))


def test_peft_has_the_starts_that_are_known():
    assert starts() == STARTS | CHANGED


@pytest.mark.parametrize("start", sorted(starts()))
def test_every_start_is_merged_or_refused(start):
    assert bool(refused(init_lora_weights=start)) is (start not in STARTS)


@pytest.mark.parametrize("start", ["mica2", "svd", "pissa_niter_4", "PiSSA"])
def test_an_unknown_start_is_refused(start):
    assert refused(init_lora_weights=start)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "true"])
def test_a_plain_start_is_taken(start):
    assert not refused(init_lora_weights=start)


@pytest.mark.parametrize(
    "member", sorted(name for name, one in FIELDS.items() if one.metadata.get("is_lora_variant"))
)
def test_every_variant_is_merged_or_refused(member):
    assert (member in VARIANTS) is not bool(
        refused(**{member: True if "use_" in member else {"a": 1}})
    )


def test_qalora_is_no_variant_of_peft_and_is_refused():
    assert refused(use_qalora=True)


def test_two_variants_are_refused_as_by_peft():
    assert refused(use_dora=True, init_lora_weights="mica")
