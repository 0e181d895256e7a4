"""Which parameters the factors of target_parameters may be of, by the configuration alone."""

from pathlib import Path

import pytest

from lora_export.dialects import read_adapter
from lora_export.errors import InputError, LimitError
from lora_export.records import AdapterFile, TensorRef, TensorSpec

PREFIX = "base_model.model.model.layers.0.mlp"
EXPERTS = "model.layers.0.mlp.experts"


def read(modules, **config):
    """The updates of an adapter with factors for these modules, by module and level."""
    refs = {}
    for module in modules:
        for role, shape in (("A", (8, 4)), ("B", (6, 8))):
            name = f"{PREFIX}.{module}.lora_{role}.weight"
            refs[name] = TensorRef(TensorSpec(name, "F32", shape), Path("x"), 0, 0)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}
    adapter = read_adapter(AdapterFile(Path("x"), refs, config=said), dialect=None)
    return adapter, {(update.module, update.level): update for update in adapter.updates}


def test_nested_layers_are_levels_of_one_module():
    named = {"target_parameters": ["experts.gate_up_proj", "mlp.experts.down_proj"]}
    adapter, found = read(["experts.base_layer", "experts"], target_modules=[], **named)
    assert found.keys() == {(EXPERTS, 0), (EXPERTS, 1)}
    for update in found.values():
        names = {one.parameter for one in update.readings()}
        assert names == {"gate_up_proj", "down_proj"}
        assert {one.terms.tuner for one in update.readings()} == {"parameter"}
    assert adapter.doubts == ()


def test_patterns_are_matched_with_the_parameters_name():
    named = {"target_parameters": ["gate_up_proj", "down_proj"]}
    patterns = {"rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {"down_proj": 9}}
    _, found = read(["experts"], target_modules=[], **named, **patterns)
    said = {one.parameter: one.terms for one in found[EXPERTS, 0].readings()}
    assert (said["gate_up_proj"].rank, said["gate_up_proj"].alpha) == (4, 3)
    assert (said["down_proj"].rank, said["down_proj"].alpha) == (2, 9)


@pytest.mark.parametrize(
    ("modules", "parameters"),
    [
        (["gate"], ["weight"]),  # named as a module: a layer, whatever else is targeted
        (["q_proj"], ["gate_up_proj"]),
        (r".*\.gate", ["gate_up_proj", "weight"]),  # a pattern: the base tells
        (["ate"], ["gate_up_proj"]),  # a component, never a substring
    ],
)
def test_a_module_that_is_targeted_itself_is_a_layer(modules, parameters):
    _, found = read(["gate"], target_modules=modules, target_parameters=["gate_up_proj"])
    [update] = found.values()
    assert [one.parameter for one in update.readings()] == parameters


def test_what_is_targeted_and_not_held_is_told():
    targets = {"target_modules": ["gate", "q_proj"], "target_parameters": ["experts.down_proj"]}
    adapter, _ = read(["gate"], **targets)
    [note] = adapter.doubts
    assert "q_proj, experts.down_proj" in note
    assert "gate," not in note


@pytest.mark.parametrize("modules", ["all-linear", r".*\.gate", ["gate"], None])
def test_what_cannot_be_held_against_the_file_is_no_note(modules):
    assert read(["gate"], target_modules=modules)[0].doubts == ()


@pytest.mark.parametrize(
    ("targets", "error"), [([3], InputError), ([f"p{n}" for n in range(100)], LimitError)]
)
def test_hostile_targets_are_refused(targets, error):
    with pytest.raises(error, match="target_parameters"):
        read(["gate"], target_parameters=targets)


def test_a_nested_layer_without_targets_is_no_module_of_the_base():
    _, found = read(["gate.base_layer"], target_modules=["gate"])
    assert [update.module for update in found.values()] == ["model.layers.0.mlp.gate.base_layer"]
