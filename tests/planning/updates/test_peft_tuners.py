"""Plans of PEFT's tuners beside LoRA: shapes that fit nothing, drawn projections, company."""

import json

import pytest
import torch
from peft_tuners import CONFIGS, configuration, edit_config, quiet, save_case
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError
from lora_export.layers import Shapes, all_kinds


def plan(base, *adapters, **settings):
    return merge(base, adapters, dry_run=True, **settings).plan


@pytest.fixture
def saved(tmp_path):
    """Write (base, adapter) of a configuration."""

    def save(name, part="case"):
        folder = tmp_path / part
        folder.mkdir()
        return save_case(name, torch.float32, folder)

    return save


def test_a_drawn_projection_has_the_sizes_of_the_largest_module(saved):
    base, adapter = saved("vera drawn")
    deltas = [delta for step in plan(base, adapter).steps() for delta in step.deltas]
    assert {delta.projection for delta in deltas} == {((1 << 40) + 7, 320, 192)}


def test_a_drawn_projection_needs_every_module(saved):
    base, adapter = saved("vera drawn")
    with pytest.raises(FitError, match="its sizes need every module"):
        plan(base, adapter, allow_unmatched=["*large*"])


def test_a_drawn_projection_needs_one_dtype(saved):
    base, adapter = saved("vera drawn")
    tensors = load_file(base)
    save_file({**tensors, "plain.weight": tensors["plain.weight"].bfloat16()}, base)
    with pytest.raises(FitError, match="dtypes differ"):
        plan(base, adapter)


def test_ia3_has_no_meaning_beside_another_adapter(saved):
    base, first = saved("ia3")
    _, second = saved("loha", "other")
    with pytest.raises(FitError, match=r"multiplied by one adapter and updated by another"):
        plan(base, first, second)


def test_additive_tuners_are_summed(saved, tmp_path):
    base, first = saved("adalora")
    _, second = saved("lokr", "other")
    report = merge(base, [first, second], tmp_path / "out.safetensors")
    assert report.passed


def test_ia3_leaves_a_bias_of_zeros_alone(saved):
    base, adapter = saved("ia3")
    tensors = load_file(base)
    save_file({**tensors, "plain.bias": torch.zeros(72)}, base)
    changed = {step.out.name for step in plan(base, adapter).changed()}
    assert "plain.weight" in changed
    assert "large.bias" in changed
    assert not {"plain.bias", "square.bias"} & changed


def test_ia3_of_zeros_is_an_update(saved):
    base, adapter = saved("ia3 feedforward")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "plain" in key)
    save_file({**tensors, key: torch.zeros_like(tensors[key])}, path)
    assert "plain.weight" in {step.out.name for step in plan(base, adapter).changed()}


def test_factors_of_zeros_are_named(saved):
    """Of one layer, which training passed over; the others have changed."""
    base, adapter = saved("lokr")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "large.lokr_w1" in key)
    save_file({**tensors, key: torch.zeros_like(tensors[key])}, path)
    (warning,) = plan(base, adapter).warnings
    assert "lokr_w1 is all zero in 1 module of" in warning
    assert "large" in warning


def test_notes_become_warnings(saved):
    base, adapter = saved("loha")
    edit_config(adapter, use_wonder=True)
    (warning,) = plan(base, adapter).warnings
    assert "use_wonder = True, which this version does not know" in warning


def test_another_rank_than_the_configuration_is_refused(saved):
    base, adapter = saved("loha")
    edit_config(adapter, rank_pattern={"square": 4})
    with pytest.raises(FitError, match="rank is 5 in the tensors but 4"):
        plan(base, adapter)


NOT_FITTING = [
    ("adalora", {"A": (2, 6), "B": (8, 2), "E": (2,)}, (8, 6)),
    ("adalora", {"A": (), "B": (8, 2), "E": (2, 1)}, (8, 6)),
    ("adalora", {"A": (2, 6), "B": (8, 2), "E": (2, 1)}, (8, 5)),
    ("loha", {"w1_a": (8, 2), "w1_b": (2, 6), "w2_a": (8, 3), "w2_b": (3, 6)}, (8, 6)),
    ("loha", {"w1_a": (8, 2), "w1_b": (), "w2_a": (8, 2), "w2_b": (2, 6)}, (8, 6)),
    ("loha", {"w1_a": (8, 2), "w1_b": (2, 6), "w2_a": (8, 2), "w2_b": (2, 6)}, ()),
    ("lokr", {}, (8, 6)),
    ("lokr", {"w1": (2, 2), "w2": (4, 4)}, (8, 6)),
    ("lokr", {"w1": (2, 2), "w1_a": (2, 1), "w2": (4, 3)}, (8, 6)),
    ("lokr", {"w1": (2, 2), "w2_a": (4, 2), "w2_b": (3, 3)}, (8, 6)),
    ("lokr", {"w1": (2, 2), "w2_a": (), "w2_b": (), "t2": (1, 1, 1, 1)}, (8, 6)),
    ("lokr", {"w1": (2, 2), "w2": (4, 3)}, ()),
    ("vera", {"lambda_b": (8,), "lambda_d": (2,), "A": (2, 5), "B": (8, 2)}, (8, 6)),
    ("vera", {"lambda_b": (8,), "lambda_d": (2,), "A": (2, 6)}, (8, 6)),
    ("vera", {"lambda_b": (), "lambda_d": ()}, (8, 6)),
    ("ia3", {"L": (7, 1)}, (8, 6)),
    ("ia3", {"L": (6, 1)}, (8, 7, 3)),
    ("ia3", {"L": ()}, ()),
    ("ia3", {"L": ()}, (8,)),
    ("ia3", {"L": (1, 6, 1, 1)}, (8, 6, 3, 3)),
    ("ia3_feedforward", {"L": (1, 5)}, (8, 6)),
    ("ia3_feedforward", {"L": (1, 8, 1, 1)}, (8, 6, 3, 3)),
    ("ia3_feedforward", {"L": ()}, ()),
]


@pytest.mark.parametrize(("kind", "factors", "weight"), NOT_FITTING)
def test_shapes_that_fit_nothing(kind, factors, weight):
    assert all_kinds()[kind].readings(Shapes(factors, weight)) == []


def test_the_plan_is_told_as_json(saved):
    base, adapter = saved("lokr whole")
    report = merge(base, [adapter], dry_run=True)
    json.dumps([str(step) for step in report.plan.steps()])


def test_every_configuration_is_a_real_one():
    with quiet():
        assert {configuration(case).peft_type.value for case in CONFIGS} == {
            "ADALORA", "LOHA", "LOKR", "VERA", "IA3",
        }  # fmt: skip
