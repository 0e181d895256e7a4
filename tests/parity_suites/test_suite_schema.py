"""The schema for editors is the one that the declared options give."""

from __future__ import annotations

from importlib.resources import files

from lora_export.options import VERBS
from lora_export.suites.reading.expected_keys import EXPECT
from lora_export.suites.reading.first_suite import is_generative
from lora_export.suites.reading.read_suite import CASE, SHARED, TOP
from lora_export.suites.reading.suite_options import OPTIONS
from lora_export.suites.reading.suite_schema import schema_text, suite_schema


def test_the_package_has_the_schema_of_the_options():
    text = (files("lora_export.suites") / "suite.schema.json").read_text(encoding="utf-8")
    assert text == schema_text(), "python -m lora_export.suites.reading.suite_schema"


def test_it_has_every_key():
    schema = suite_schema()
    assert set(schema["properties"]) == set(TOP)
    case = schema["properties"]["case"]["items"]["properties"]
    flags = {option.flag.removeprefix("--") for option in OPTIONS}
    opposites = {option.opposite for option in OPTIONS if option.opposite}
    assert set(case) == {*CASE, *flags, *opposites}
    assert set(schema["properties"]["defaults"]["properties"]) == {*SHARED, *flags, *opposites}
    assert set(case["expect"]["properties"]) == set(EXPECT)
    assert case["seed"]["minimum"] == 0
    assert case["recipe"]["enum"] == ["auto", "peft", "peft-safe", "exact"]


def test_a_suite_takes_every_option_of_its_verbs_but_those_of_outputs():
    every = {option.name for verb in ("merge", "onnx", "verify") for option in VERBS[verb]}
    left = every - {option.name for option in OPTIONS}
    own = {"base", "adapters", "require"}
    assert left - {"report"} == {"output", "force", "undo", "dry_run", "verify"} | own


def test_a_generative_model_is_known_by_its_architecture():
    assert is_generative({"architectures": ["LlamaForCausalLM"]})
    for other in (["BertModel"], "LlamaForCausalLM", None):
        assert not is_generative({"architectures": other})
