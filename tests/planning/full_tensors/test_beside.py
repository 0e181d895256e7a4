"""Weights beside an adapter's file: merged where the base has them, else refused by the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import inspect, merge, unmerge, verify
from lora_export.errors import FitError, InputError, OutputError, UsageError, VerificationError

PREFIX = "base_model.model."
BASE = {
    "model.q.weight": torch.arange(12.0).reshape(4, 3) / 7,
    "model.norm.weight": torch.ones(3),
    "projector.weight": torch.full((3, 3), 0.5),
    "projector.bias": torch.zeros(3),
}
FACTORS = {
    f"{PREFIX}model.q.lora_A.weight": torch.full((2, 3), 0.25),
    f"{PREFIX}model.q.lora_B.weight": torch.full((4, 2), 0.5),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
TRAINED = {"projector.weight": torch.full((3, 3), 2.0), "projector.bias": torch.full((3,), 3.0)}
MERGED = BASE["model.q.weight"] + 2 * torch.full((4, 3), 0.25)


@pytest.fixture
def folder(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file(FACTORS, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def put(folder: Path, name: str, tensors: dict[str, torch.Tensor], prefix="") -> Path:
    tensors = {prefix + key: value.clone() for key, value in tensors.items()}
    save = save_file if name.endswith(".safetensors") else torch.save
    save(tensors, folder / "lora" / name)
    return folder / "lora" / name


def run(folder: Path, adapter="lora", **settings):
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    report = merge(base, [folder / adapter], out, force=True, **settings)
    return load_file(out), report


def refused(folder: Path, kind, **settings) -> str:
    with pytest.raises(kind) as caught:
        run(folder, **settings)
    return str(caught.value)


WRITERS = {
    "LLaVA": ("non_lora_trainables.bin", PREFIX, TRAINED),
    "Qwen2-VL-Finetune": ("non_lora_state_dict.bin", PREFIX, TRAINED),
    "LongLoRA": ("trainable_params.bin", "", {"model.norm.weight": torch.full((3,), 4.0)}),
    "ms-swift": ("vit.safetensors", PREFIX, TRAINED),
    "a head of PEFT's": (
        "head.pt",
        PREFIX,
        {"projector.modules_to_save.default.weight": torch.full((3, 3), 9.0)},
    ),
    "Lightning": ("last.ckpt", PREFIX, TRAINED),
}


@pytest.mark.parametrize(("name", "prefix", "tensors"), WRITERS.values(), ids=WRITERS)
def test_what_was_trained_beside_takes_the_place_of_the_base_s(name, prefix, tensors, folder):
    put(folder, name, tensors, prefix)
    merged, report = run(folder)
    plain = {key.replace(".modules_to_save.default", ""): v for key, v in tensors.items()}
    wanted = {**BASE, "model.q.weight": MERGED, **plain}
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[key], wanted[key]) for key in wanted)
    assert any(name in choice for choice in report.plan.choices)
    assert all(check.passed for check in report.checks)


def test_named_by_its_file_the_adapter_is_the_same(folder):
    put(folder, "non_lora_trainables.bin", TRAINED)
    by_file, _ = run(folder, "lora/adapter_model.safetensors")
    assert torch.equal(by_file["projector.bias"], TRAINED["projector.bias"])


def test_the_manifest_records_the_file_and_verify_reads_it_again(folder):
    path = put(folder, "vit.safetensors", TRAINED)
    run(folder)
    out = folder / "out.safetensors"
    manifest = json.loads((folder / "out.safetensors.lora_export.json").read_text())
    [entry] = manifest["inputs"]["adapters"]
    assert [file["name"] for file in entry["files"]] == ["vit.safetensors"]
    again = {"base": folder / "base.safetensors", "adapters": [folder / "lora"]}
    assert all(check.passed for check in verify(out, **again).checks)
    save_file({key: value + 1 for key, value in TRAINED.items()}, path)
    with pytest.raises(VerificationError, match="inputs are those of the manifest"):
        verify(out, **again)
    path.unlink()
    with pytest.raises(VerificationError, match="inputs are those of the manifest"):
        verify(out, **again)


def test_it_is_an_input_that_is_not_written_to(folder):
    path = put(folder, "vit.safetensors", TRAINED)
    with pytest.raises(OutputError):
        merge(folder / "base.safetensors", [folder / "lora"], path, force=True)


FOREIGN = {
    "LLaMA-Factory": ("value_head.safetensors", {"v_head.summary.weight": torch.ones(1, 3)}),
    "TRL": ("pytorch_model.bin", {"v_head.summary.weight": torch.ones(1, 3)}),
    "another network": ("probe.pt", {"linear.weight": torch.ones(2, 3)}),
}


@pytest.mark.parametrize(("name", "tensors"), FOREIGN.values(), ids=FOREIGN)
def test_what_the_base_lacks_is_refused_with_the_way_out(name, tensors, folder):
    put(folder, name, tensors)
    told = refused(folder, FitError)
    assert name in told
    assert f"--ignore '{name}'" in told
    assert next(iter(tensors)) in told
    merged, report = run(folder, ignore=[name])
    assert merged.keys() == BASE.keys()
    assert any(name in warning and "--ignore" in warning for warning in report.warnings)
    manifest = json.loads((folder / "out.safetensors.lora_export.json").read_text())
    assert manifest["options"]["ignore"] == [name]
    assert manifest["inputs"]["adapters"][0]["ignored"] == [name]


def test_allow_new_adds_them(folder):
    put(folder, "value_head.safetensors", {"v_head.summary.weight": torch.ones(1, 3)})
    merged, _ = run(folder, allow_new=["v_head.*"])
    assert torch.equal(merged["v_head.summary.weight"], torch.ones(1, 3))


def test_allow_unmatched_leaves_these_tensors_alone_out(folder):
    put(folder, "state.pt", {**TRAINED, "v_head.summary.weight": torch.ones(1, 3)})
    assert "--allow-unmatched GLOB" in refused(folder, FitError)
    merged, _ = run(folder, allow_unmatched=["v_head.*"])
    assert merged.keys() == BASE.keys()
    assert torch.equal(merged["projector.bias"], TRAINED["projector.bias"])


def test_two_files_beside_that_differ_are_both_named(folder):
    put(folder, "a.pt", {"projector.bias": torch.ones(3)})
    put(folder, "b.pt", {"projector.bias": torch.zeros(3) + 2})
    told = refused(folder, InputError)
    assert "b.pt: holds other values than a.pt for 1 tensor: projector.bias" in told
    put(folder, "b.pt", {"projector.bias": torch.zeros(3) + 2}, PREFIX)
    assert "has other values than in a.pt" in refused(folder, InputError)
    assert torch.equal(run(folder, ignore=["b.pt"])[0]["projector.bias"], torch.ones(3))


def test_verify_does_not_believe_the_manifest_that_a_file_may_be_ignored(folder):
    put(folder, "value_head.safetensors", {"v_head.summary.weight": torch.ones(1, 3)})
    run(folder, ignore=["value_head.safetensors"])
    again = {"base": folder / "base.safetensors", "adapters": [folder / "lora"]}
    with pytest.raises(VerificationError, match="made with --ignore 'value_head"):
        verify(folder / "out.safetensors", **again)
    assert verify(folder / "out.safetensors", **again, ignore=["*.safetensors"]).checks


@pytest.mark.parametrize("name", ["zzz.bin", "adapter_model.safetensors", "optimizer.pt"])
def test_an_ignore_that_fits_nothing_is_refused(name, folder):
    put(folder, "vit.safetensors", TRAINED)
    put(folder, "optimizer.pt", {"state": torch.ones(2)})
    told = refused(folder, UsageError, ignore=[name])
    assert f"--ignore: '{name}' fits no other weight file" in told
    assert "vit.safetensors" in told


STATE = [
    "optimizer.pt", "optimizer.bin", "optimizer_1.bin", "scheduler.pt", "rng_state.pth",
    "rng_state_3.pth", "random_states_0.pkl", "scaler.pt", "training_args.bin",
    "custom_checkpoint_0.pkl", "dl_state_dict.bin", "recipe_state.pt",
]  # fmt: skip


@pytest.mark.parametrize("name", STATE)
def test_state_that_only_training_needs_is_left_alone(name, folder):
    put(folder, name, {"projector.weight": torch.full((3, 3), 7.0)})
    merged, report = run(folder)
    assert torch.equal(merged["projector.weight"], BASE["projector.weight"])
    assert not any(name in choice for choice in report.plan.choices)


def test_nothing_in_a_file_is_nothing_lost(folder):
    torch.save({}, folder / "lora" / "non_lora_trainables.bin")
    torch.save({"step": 3}, folder / "lora" / "progress.pt")
    assert torch.equal(run(folder)[0]["model.q.weight"], MERGED)


def test_a_damaged_file_is_refused_unless_it_is_ignored(folder):
    (folder / "lora" / "non_lora_trainables.bin").write_bytes(b"PK\x03\x04 and no more")
    told = refused(folder, InputError)
    assert "non_lora_trainables.bin" in told
    assert "--ignore 'non_lora_trainables.bin'" in told
    assert run(folder, ignore=["non_lora_trainables.bin"])


DESTROYED = {
    "empty": b"",
    "a page": b"<!doctype html><title>404</title>",
    "text": b"not found\n",
    "noise": bytes(range(5, 250)),
}


@pytest.mark.parametrize("content", DESTROYED.values(), ids=DESTROYED)
def test_a_bin_of_no_known_content_may_be_lost_weights(content, folder):
    (folder / "lora" / "non_lora_trainables.bin").write_bytes(content)
    assert "--ignore 'non_lora_trainables.bin'" in refused(folder, InputError)
    merged, _ = run(folder, ignore=["non_lora_trainables.bin"])
    assert torch.equal(merged["model.q.weight"], MERGED)


def test_a_link_that_leads_nowhere_is_refused_too(folder):
    (folder / "lora" / "trained.bin").symlink_to("gone")
    assert "--ignore 'trained.bin'" in refused(folder, InputError)


def test_the_second_format_of_the_same_adapter_is_told(folder):
    put(folder, "adapter_model.bin", FACTORS)
    merged, report = run(folder)
    assert torch.equal(merged["model.q.weight"], MERGED)
    assert any("adapter_model.bin" in choice for choice in report.plan.choices)


def test_two_formats_that_differ_are_two_readings(folder):
    put(folder, "adapter_model.bin", {key: value * 2 for key, value in FACTORS.items()})
    told = refused(folder, InputError)
    assert "holds other values than adapter_model.safetensors for 2 tensors" in told
    assert "--ignore 'adapter_model.bin'" in told
    assert torch.equal(run(folder, ignore=["adapter_model.bin"])[0]["model.q.weight"], MERGED)
    other, _ = run(folder, "lora/adapter_model.bin", ignore=["adapter_model.safetensors"])
    assert torch.equal(other["model.q.weight"], BASE["model.q.weight"] + 8 * 0.25)


def dump(q=BASE["model.q.weight"], factor=1.0):
    """The state dict of a PeftModel, as torch.save(model.state_dict()) leaves it."""
    state = {f"{PREFIX}{key}": value for key, value in (BASE | TRAINED).items()}
    del state[f"{PREFIX}model.q.weight"]
    named = {k.replace(".weight", ".default.weight"): v * factor for k, v in FACTORS.items()}
    return {**state, f"{PREFIX}model.q.base_layer.weight": q, **named}


def test_the_state_dict_of_the_whole_model_beside_the_adapter(folder):
    put(folder, "pytorch_model.bin", dump())
    merged, report = run(folder)
    assert torch.equal(merged["model.q.weight"], MERGED)
    assert torch.equal(merged["projector.weight"], TRAINED["projector.weight"])
    assert any("equal to those of adapter_model" in choice for choice in report.plan.choices)


@pytest.mark.parametrize("state", [dump(factor=2.0), dump(q=MERGED)], ids=["factors", "layer"])
def test_a_whole_state_dict_that_differs_is_refused(state, folder):
    put(folder, "pytorch_model.bin", state)
    assert "--ignore 'pytorch_model.bin'" in refused(folder, (InputError, FitError))


def test_the_merged_model_in_the_same_folder_is_not_merged_again(folder):
    put(folder, "model.safetensors", {**BASE, "model.q.weight": MERGED})
    told = refused(folder, FitError)
    assert "contains the update already is not in the file" in told
    assert "--ignore 'model.safetensors'" in told


def test_a_copy_of_the_base_changes_nothing(folder):
    put(folder, "model.safetensors", BASE)
    merged, report = run(folder)
    assert torch.equal(merged["model.q.weight"], MERGED)
    assert any("4 equal to the base's" in choice for choice in report.plan.choices)


def test_base_and_adapter_in_one_folder(folder):
    save_file(BASE, folder / "lora" / "model.safetensors")
    merge(folder / "lora", [folder / "lora"], folder / "out")
    assert torch.equal(load_file(folder / "out" / "model.safetensors")["model.q.weight"], MERGED)


def test_results_and_undo_files_of_this_tool_are_no_inputs(folder):
    base, lora = folder / "base.safetensors", folder / "lora"
    for _ in range(2):
        out, undo = lora / "out.safetensors", lora / "undo.safetensors"
        merge(base, [lora], out, undo=undo, force=True)
        assert torch.equal(load_file(out)["model.q.weight"], MERGED)


def test_shards_beside_are_one_set(folder):
    put(folder, "pytorch_model-00001-of-00002.bin", {"projector.weight": torch.ones(3, 3)})
    told = refused(folder, InputError)
    assert "pytorch_model-*-of-00002.bin lacks pytorch_model-00002-of-00002.bin" in told
    put(folder, "pytorch_model-00002-of-00002.bin", {"projector.bias": torch.ones(3)})
    assert torch.equal(run(folder)[0]["projector.bias"], torch.ones(3))
    homes = {f"projector.{leaf}": f"pytorch_model-0000{n}-of-00002.bin"
             for n, leaf in ((1, "weight"), (2, "bias"))}  # fmt: skip
    index = folder / "lora" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {**homes, "lost": homes["projector.bias"]}}))
    told = refused(folder, InputError)
    assert "'lost' is not in" in told
    assert "--ignore 'pytorch_model.bin.index.json'" in told
    merged, _ = run(folder, ignore=["pytorch_model.bin.index.json"])
    assert torch.equal(merged["projector.bias"], BASE["projector.bias"])


def test_the_same_factors_twice_are_one_adapter_whatever_lies_beside(folder):
    put(folder, "vit.safetensors", TRAINED)
    (folder / "two").mkdir()
    for path in (folder / "lora").glob("adapter_*"):
        (folder / "two" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FitError, match="named twice"):
        merge(folder / "base.safetensors", [folder / "lora", folder / "two"], dry_run=True)


def test_inspect_lists_them(folder):
    put(folder, "vit.safetensors", TRAINED)
    put(folder, "optimizer.pt", {"state": torch.ones(2)})
    (folder / "lora" / "odd.bin").write_bytes(b"PK\x03\x04 and no more")
    beside = inspect(folder / "lora").facts["found"]["beside"]
    assert [entry["file"] for entry in beside] == ["odd.bin", "vit.safetensors"]
    assert beside[1]["tensors"] == 2


def test_an_empty_partition_of_zero_3_names_the_script(folder):
    put(folder, "non_lora_trainables.bin", {"projector.weight": torch.empty(0)})
    assert "python zero_to_fp32.py . OUT" in refused(folder, FitError)
    empty = {key: torch.empty(0) for key in FACTORS}
    put(folder, "adapter_model.safetensors", empty)
    assert "python zero_to_fp32.py . OUT" in refused(folder, InputError)


def test_a_further_module_of_sentence_transformers(folder):
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Dense"}]
    save_file(BASE, folder / "lora" / "model.safetensors")
    dense = folder / "lora" / "1_Dense"
    dense.mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, dense / "model.safetensors")
    (folder / "lora" / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(folder / "lora", folder / "base")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / "base" / name).unlink()
    (folder / "lora" / "model.safetensors").unlink()
    merge(folder / "base", [folder / "lora"], folder / "out")
    name = "1_Dense/model.safetensors"
    assert (folder / "out" / name).read_bytes() == (dense / "model.safetensors").read_bytes()
    save_file({"linear.weight": torch.zeros(2, 2)}, dense / "model.safetensors")
    with pytest.raises(InputError, match="further module") as caught:
        merge(folder / "base", [folder / "lora"], dry_run=True)
    assert f"--ignore '{name}'" in str(caught.value)
    assert merge(folder / "base", [folder / "lora"], dry_run=True, ignore=[name])


def test_weights_of_another_framework_are_told(folder):
    (folder / "lora" / "adapter.gguf").write_bytes(b"GGUF")
    _, report = run(folder)
    assert any("adapter.gguf" in choice for choice in report.plan.choices)


def test_unmerge_gives_the_base_back(folder):
    put(folder, "vit.safetensors", TRAINED)
    run(folder, undo=folder / "undo.safetensors")
    unmerge(
        folder / "out.safetensors", folder / "back.safetensors", undo=folder / "undo.safetensors"
    )
    assert (folder / "back.safetensors").read_bytes() == (folder / "base.safetensors").read_bytes()
