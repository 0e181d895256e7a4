"""Merged models before rounding: every adapted weight is found, and nothing else is changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import loralib as lora
import pytest
import small_gpt
import torch
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from peft_matrix.warned import OF_OPTIONS, WHILE_SAVING, ignored
from safetensors.torch import load_file, save_file

from lora_export.api.graph.making import merged_checkpoint, traced_model
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import VerificationError
from lora_export.models.subject import Subject
from lora_export.verification.model.loading import load_merged, load_unrounded

pytestmark = ignored(WHILE_SAVING + OF_OPTIONS)

_OTHERS = (
    "adalora shared out",  # PEFT rounds its factors to the dtype of the base
    "experts of transformers 4",  # its modules have no live branches, so no unmerged model runs
)


def subject_of(base, adapter, place, model=None):
    job = make_job(base, [adapter], network=Network(model), proof=None, settings={})
    merged = merged_checkpoint(job, place)
    return Subject(traced_model(job, merged), job.plan, merged)


def of_folder(name, option, dtype, folder):
    architecture = ARCHITECTURES[name]
    architecture.save(dtype, folder / "base")
    make_adapter(architecture, OPTIONS[option], folder / "base", folder / "adapter", seed=0)
    return subject_of(folder / "base", folder / "adapter", folder / "merged")


def in_float32(folder):
    """What the product makes of the same base in float32: it is not rounded to half precision."""
    wide = folder / "wide"
    wide.mkdir()
    for file in (folder / "base").iterdir():
        if file.suffix == ".safetensors":
            tensors = {
                k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()
            }
            save_file(tensors, wide / file.name, metadata={"format": "pt"})
        else:
            (wide / file.name).write_bytes(file.read_bytes())
    config = json.loads((wide / "config.json").read_text())
    config["dtype"] = "float32"
    (wide / "config.json").write_text(json.dumps(config))
    return subject_of(wide, folder / "adapter", folder / "merged wide")


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in _OTHERS])
def test_it_is_the_merge_of_the_base_in_float32(option, tmp_path):
    subject = of_folder(OPTIONS[option].on[-1], option, torch.bfloat16, tmp_path)
    found = load_unrounded(subject).state_dict()
    stored = load_merged(subject).state_dict()
    wanted = load_merged(in_float32(tmp_path)).state_dict()
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    # The rounding moved the stored weights farther than that.
    assert any(not torch.allclose(stored[k], found[k], rtol=1e-4, atol=1e-5) for k in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_so_for_a_network_of_ones_own(dtype, tmp_path):
    model = small_gpt.trained()
    state = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if "lora_" not in k}
    save_file(state, tmp_path / "base.safetensors")
    torch.save(lora.lora_state_dict(model), tmp_path / "lora.pt")
    factory = f"{Path(small_gpt.__file__)}:build"
    subject = subject_of(
        tmp_path / "base.safetensors", tmp_path / "lora.pt", tmp_path / "merged", factory
    )
    (tmp_path / "wide").mkdir()
    wide = {name: value.float() for name, value in state.items()}
    save_file(wide, tmp_path / "wide" / "base.safetensors")
    other = subject_of(
        tmp_path / "wide" / "base.safetensors", tmp_path / "lora.pt", tmp_path / "more", factory
    )
    found, wanted = load_unrounded(subject).state_dict(), load_merged(other).state_dict()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_tensors_without_an_update_get_the_values_back_that_they_were_rounded_from(name, tmp_path):
    """Also experts that the files hold one by one, and the running model in one tensor."""
    right = of_folder(name, "plain", torch.float32, tmp_path)
    shards = tuple(
        replace(
            shard, steps=tuple(replace(s, out=replace(s.out, dtype="BF16")) for s in shard.steps)
        )
        for shard in right.plan.shards
    )
    stored = tmp_path / "stored"
    shutil.copytree(right.merged.root, stored)
    for file in stored.glob("*.safetensors"):
        rounded = {key: value.bfloat16() for key, value in load_file(file).items()}
        save_file(rounded, file, metadata={"format": "pt"})
    plan = replace(right.plan, shards=shards)
    subject = Subject(right.source, plan, read_checkpoint(stored))
    found, wanted = load_unrounded(subject).state_dict(), load_merged(right).state_dict()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_a_base_in_float32_has_no_rounding(tmp_path):
    subject = of_folder("llama", "plain", torch.float32, tmp_path)
    found, stored = load_unrounded(subject).state_dict(), load_merged(subject).state_dict()
    assert all(torch.equal(found[key], stored[key]) for key in stored)


def test_a_merged_tensor_that_the_model_holds_otherwise_is_refused(tmp_path, monkeypatch):
    """A wrong place would be filled, and the right one compared with its rounding."""
    subject = of_folder("llama", "plain", torch.bfloat16, tmp_path)
    right = type(subject.source).module

    def module(source, model, name):
        return right(source, model, name.replace("q_proj", "k_proj"))

    monkeypatch.setattr(type(subject.source), "module", module)
    with pytest.raises(VerificationError, match="does not hold the stored values"):
        load_unrounded(subject)


def test_a_changed_element_stays_changed(tmp_path):
    subject = of_folder("llama", "plain", torch.bfloat16, tmp_path)
    file = subject.merged.shards[0].file
    tensors = load_file(file)
    name = next(step.out.name for step in subject.plan.steps() if step.deltas)
    tensors[name][2, 3] += 1
    right = load_unrounded(subject).state_dict()
    save_file(tensors, file, metadata={"format": "pt"})
    wrong = replace(subject, merged=read_checkpoint(subject.merged.root))
    found = load_unrounded(wrong).state_dict()
    changed = {key: (found[key] - right[key]).nonzero().tolist() for key in right}
    assert {key: value for key, value in changed.items() if value} == {name: [[2, 3]]}
