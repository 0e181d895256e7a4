"""litgpt's LoRA: the bits of a copy of its merge, and a refusal wherever a fact is missing.

The copy in litgpt_files was compared with litgpt itself, which is not installed here.
"""

from dataclasses import replace
from pathlib import Path

import litgpt_network
import pytest
import torch
from litgpt_files import ALPHA, COMBINATIONS, PARTS, Training, write, write_settings
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, inspect, merge, verify
from lora_export.errors import FitError, InputError, UsageError, VerificationError

NETWORK = Path(litgpt_network.__file__)
QV = Training()
WHOLE = Training(parts=tuple(PARTS))


def assert_merged(report, out, expected, *, dtype=None):
    found = load_file(out)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(dtype or tensor.dtype)), name
    assert report.passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
@pytest.mark.parametrize("by_group", [False, True], ids=["one after the other", "by group"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("enabled", COMBINATIONS)
def test_the_merge_is_litgpts_to_the_bit(enabled, groups, by_group, dtype, tmp_path):
    training = Training(enabled, groups, by_group, dtype=dtype)
    base, lora, expected = write(tmp_path, training)
    report = merge(base, [lora], tmp_path / "out.safetensors")
    assert_merged(report, tmp_path / "out.safetensors", expected)
    kinds = {delta.kind for step in report.plan.changed() for delta in step.deltas}
    assert kinds == {"litgpt_qkv"}


@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_wide_weights_have_the_bits_of_the_convolution(dtype, rank, tmp_path):
    training = Training(width=512, rank=rank, dtype=dtype)
    base, lora, expected = write(tmp_path, training)
    report = merge(base, [lora], tmp_path / "out.safetensors")
    assert_merged(report, tmp_path / "out.safetensors", expected)


@pytest.mark.parametrize("parts", [("head",), ("mlp", "projection"), tuple(PARTS)])
@pytest.mark.parametrize("enabled", [(True, True, True), (False, False, False)])
def test_the_plain_layers_are_merged_with_it(enabled, parts, tmp_path):
    training = Training(enabled, parts=parts)
    base, lora, expected = write(tmp_path, training)
    report = merge(base, [lora], tmp_path / "out.safetensors")
    assert_merged(report, tmp_path / "out.safetensors", expected)
    assert {adapter.dialect for adapter in report.plan.adapters} == {"litgpt"}


def test_a_folder_is_its_lora_although_the_merged_model_lies_beside_it(tmp_path):
    base, lora, expected = write(tmp_path, QV)
    torch.save(expected, lora.with_name("lit_model.pth"))
    report = merge(base, [lora.parent], tmp_path / "out.safetensors")
    assert_merged(report, tmp_path / "out.safetensors", expected)


@pytest.mark.parametrize(("of_base", "of_lora"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_another_dtype_than_the_bases_is_warned_of(of_base, of_lora, tmp_path):
    """litgpt casts the base first. The wider LoRA gives litgpt's values, rounded to the base's."""
    kept = getattr(torch, of_base)
    training = replace(WHOLE, dtype=getattr(torch, of_lora), base_dtype=kept)
    base, lora, expected = write(tmp_path, training)
    report = merge(base, [lora], tmp_path / "out.safetensors")
    assert any("casts the base" in warning for warning in report.plan.warnings)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out.safetensors").values()} == {kept}
    if of_lora == "float32":
        assert_merged(report, tmp_path / "out.safetensors", expected, dtype=kept)


def test_equal_dtypes_are_not_warned_of(tmp_path):
    base, lora, _ = write(tmp_path, QV)
    assert not merge(base, [lora], tmp_path / "out.safetensors").plan.warnings


MISSING = {
    "hyperparameters.yaml": ["alpha", "enable_lora"],
    "model_config.yaml": ["n_head", "n_query_groups"],
}


@pytest.mark.parametrize("enabled", [(True, False, True), (True, True, True)])
@pytest.mark.parametrize("lacking", [*([name] for name in MISSING), [*MISSING]])
def test_without_the_files_one_message_names_them_and_the_facts(lacking, enabled, tmp_path):
    base, lora, _ = write(tmp_path, replace(WHOLE, enabled=enabled))
    for name in lacking:
        lora.with_name(name).unlink()
    with pytest.raises(UsageError) as caught:
        merge(base, [lora], tmp_path / "out.safetensors")
    assert len(caught.value.problems) == 1
    text = str(caught.value)
    assert all(word in text for word in (*MISSING, "--hparams", "n_query_groups", "litgpt"))
    facts = [fact for name in lacking for fact in MISSING[name]]
    assert f"without its {', '.join(facts)}:" in text
    assert not (tmp_path / "out.safetensors").exists()


def test_all_three_adapted_are_not_asked_for(tmp_path):
    base, lora, expected = write(tmp_path, Training((True, True, True)), settings=False)
    facts = tmp_path / "facts.toml"
    facts.write_text(f"alpha = {ALPHA}\nn_head = 4\nn_query_groups = 2\n")
    report = merge(base, [lora], tmp_path / "out.safetensors", hparams=facts)
    assert_merged(report, tmp_path / "out.safetensors", expected)


def test_hparams_give_the_facts_and_the_manifest_keeps_them(tmp_path):
    base, lora, expected = write(tmp_path, WHOLE, settings=False)
    facts, out = tmp_path / "facts.toml", tmp_path / "out.safetensors"
    facts.write_text("n_head = 4\nn_query_groups = 2\n")
    report = merge(base, [lora], out, hparams=facts, alpha=ALPHA, enable_lora="1,0,1")
    assert_merged(report, out, expected)
    assert verify(out, base=base, adapters=[lora]).passed
    wrong = load_file(out)
    name = "transformer.h.1.attn.qkv.weight"
    wrong[name] = wrong[name].roll(8, 0)  # the update of one head in the place of the next
    save_file(wrong, out)
    with pytest.raises(VerificationError):
        verify(out, base=base, adapters=[lora])


REFUSED = {
    # what is changed: (in the files, options, error, words)
    "another alpha": ({}, {"alpha": 16}, UsageError, ["alpha is 10", "16", "hyperparameters.yaml"]),
    "other blocks": ({}, {"enable_lora": "1,1,1"}, UsageError, ["enable_lora", "the options"]),
    "stored (in, out)": ({}, {"fan_in_fan_out": True}, UsageError, ["fan_in_fan_out"]),
    "another rank": ({"lora_r": 8}, {}, FitError, ["rank is 4", "8"]),
    "other heads": ({"n_head": 8, "n_query_groups": 8}, {}, FitError, ["n_head = 8", "64 rows"]),
    "wrong groups": ({"n_head": 6, "n_query_groups": 1}, {}, UsageError, ["56 of B"]),
    "other switches": ({"lora_key": True}, {}, UsageError, ["rows of A"]),
    "a part too much": ({"lora_mlp": True}, {}, InputError, ["lora_mlp", "is on", "no factors"]),
    "a part that is off": (
        {"lora_query": False, "lora_value": False}, {}, InputError, ["is off, but it holds"]
    ),
    "a layer too few": (
        {"n_layer": 3}, {}, InputError, ["2 layers", "n_layer in model_config.yaml is 3"]
    ),
    "no number": ({"lora_alpha": "ten"}, {}, InputError, ["lora_alpha is not a number"]),
    "no flag": ({"lora_key": "no!"}, {}, InputError, ["lora_key is not true or false"]),
    "no whole number": ({"n_head": 4.5}, {}, InputError, ["n_head is not a whole number"]),
    "alpha 0": ({"lora_alpha": 0}, {}, UsageError, ["not a positive number"]),
    "PEFT's arithmetic": ({}, {"recipe": "peft"}, UsageError, ["litgpt adapter"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "options", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_contradicts_is_refused(changes, options, error, words, tmp_path):
    base, lora, _ = write(tmp_path, QV)
    write_settings(lora.parent, QV, **changes)
    with pytest.raises(error) as caught:
        merge(base, [lora], tmp_path / "out.safetensors", **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_the_options_repeat_is_fine(tmp_path):
    base, lora, expected = write(tmp_path, QV)
    repeated = {"alpha": ALPHA, "enable_lora": "1,0,1", "fan_in_fan_out": False}
    report = merge(base, [lora], tmp_path / "out.safetensors", **repeated)
    assert_merged(report, tmp_path / "out.safetensors", expected)


@pytest.mark.parametrize("settings", [True, False])
def test_a_file_that_may_be_older_than_the_right_rows_is_warned_of(settings, tmp_path):
    base, lora, expected = write(tmp_path, Training(by_group=True), settings=settings)
    (tmp_path / "facts.toml").write_text(
        f"alpha = {ALPHA}\nenable_lora = [true, false, true]\nn_head = 4\nn_query_groups = 2\n"
    )
    out = tmp_path / "out.safetensors"
    report = merge(base, [lora], out, hparams=None if settings else tmp_path / "facts.toml")
    assert_merged(report, out, expected)
    told = [warning for warning in report.plan.warnings if "before February 2024" in warning]
    assert len(told) == (0 if settings else 1)


def test_no_groups_are_as_many_as_heads(tmp_path):
    training = Training(groups=4)
    base, lora, expected = write(tmp_path, training)
    write_settings(lora.parent, training, n_query_groups=None)
    report = merge(base, [lora], tmp_path / "out.safetensors")
    assert_merged(report, tmp_path / "out.safetensors", expected)


@pytest.mark.parametrize("text", ["{lora_alpha: 10}", "lora_alpha: 10\nnote: 'a\nb: c'\n", "? a"])
def test_yaml_that_can_be_misread_is_refused(text, tmp_path):
    base, lora, _ = write(tmp_path, QV)
    lora.with_name("hyperparameters.yaml").write_text(text)
    with pytest.raises(InputError, match="no YAML of plain members"):
        merge(base, [lora], tmp_path / "out.safetensors")


def test_loralibs_own_layers_of_that_name_can_be_told(tmp_path):
    training = Training((True, True, True), groups=4)
    base, lora, expected = write(tmp_path, training, settings=False)
    report = merge(base, [lora], tmp_path / "out.safetensors", alpha=ALPHA, dialect="loralib")
    assert_merged(report, tmp_path / "out.safetensors", expected)


def test_another_kind_of_layer_is_refused_and_the_way_named(tmp_path):
    base, lora, _ = write(tmp_path, QV, settings=False)
    (tmp_path / "facts.toml").write_text('alpha = 10\nkind = "merged_linear"\n')
    with pytest.raises(UsageError, match="names of litgpt's layers") as caught:
        merge(base, [lora], tmp_path / "out.safetensors", hparams=tmp_path / "facts.toml")
    assert "--dialect loralib" in str(caught.value)


def test_head_counts_without_litgpt_are_refused(tmp_path):
    save_file({"m.weight": torch.zeros(4, 6)}, tmp_path / "base.safetensors")
    torch.save({"m.lora_A": torch.ones(2, 6), "m.lora_B": torch.ones(4, 2)}, tmp_path / "lora.pt")
    (tmp_path / "facts.toml").write_text("alpha = 4\nn_head = 4\n")
    with pytest.raises(UsageError, match="no fused query, key and value"):
        merge(
            tmp_path / "base.safetensors",
            [tmp_path / "lora.pt"],
            tmp_path / "out.safetensors",
            hparams=tmp_path / "facts.toml",
        )


@pytest.mark.parametrize(("by_group", "factory"), [(False, "build"), (True, "build_old")])
def test_the_unmerged_network_proves_the_merge(by_group, factory, tmp_path):
    base, lora, _ = write(tmp_path, replace(WHOLE, by_group=by_group))
    report = merge(base, [lora], tmp_path / "out.safetensors", model=f"{NETWORK}:{factory}")
    assert "model" in {check.level for check in report.checks}
    assert report.passed


def test_the_graph_is_proven_against_the_unmerged_network(tmp_path):
    base, lora, _ = write(tmp_path, QV)
    report = export_onnx(base, [lora], tmp_path / "out.onnx", model=f"{NETWORK}:build")
    assert report.passed
    assert {"file", "runtime"} <= {check.level for check in report.checks}


def test_inspect_tells_what_the_files_lack(tmp_path):
    _, lora, _ = write(tmp_path, QV)
    found = inspect(lora).facts["found"]
    assert (found["dialect"], found["not_in_the_file"]) == ("litgpt", [])
    lora.with_name("model_config.yaml").unlink()
    assert inspect(lora).facts["found"]["not_in_the_file"] == ["n_head", "n_query_groups"]
