"""Updates that are exactly zero: of layers that training never called, beside some that it did."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from peft_folders import llama
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge
from lora_export.errors import FitError, VerificationError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0
    )
    return MambaForCausalLM(config)


def trained(folder, model, config):
    """An adapter after real steps of an optimiser: what forward never calls keeps its zeros."""
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, config)
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(7))
    optimiser = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), 1.0)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    adapted.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


@pytest.fixture(scope="module")
def trained_mamba(tmp_path_factory):
    """A Mamba and its adapter, and what PEFT's merge makes of them; not to be changed."""
    folder = tmp_path_factory.mktemp("mamba")
    return folder, trained(folder, mamba(), MAMBA)


def zeroed(folder, words):
    """The adapter with every tensor set to zero whose name holds one of the words."""
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = {
        name: torch.zeros_like(tensor) if any(word in name for word in words) else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def told(report):
    return [words for words in report.warnings if "training did not change them" in words]


MAMBA = LoraConfig(r=2, lora_alpha=4, target_modules=["x_proj", "in_proj", "dt_proj"])
ATTENTION = ["q_proj", "v_proj"]


@pytest.mark.parametrize("options", [{}, {"allow_noop": True}])
def test_mambas_dt_proj_is_never_trained(options, trained_mamba, tmp_path):
    folder, expected = trained_mamba
    report = merge(folder / "base", [folder / "adapter"], tmp_path / "out", **options)
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "merged = unmerged in float64" in [check.name for check in report.checks]
    assert len(told(report)) == (not options)
    if not options:
        assert "lora_B is all zero in 2 modules of 6" in told(report)[0]
        assert "backbone.layers.1.mixer.dt_proj" in told(report)[0]
        [changed] = [c for c in report.checks if c.name == "every target changed"]
        assert "4 planned tensors differ" in changed.detail


def test_one_that_is_never_called_and_is_not_zero_is_refused(trained_mamba, tmp_path):
    """The merge would have an effect there that the unmerged model does not have."""
    shutil.copytree(trained_mamba[0], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.1.mixer.dt_proj.lora_B" in key)
    save_file({**tensors, key: tensors[key] + 0.1}, file, metadata={"format": "pt"})
    with pytest.raises(
        FitError, match=r"layers\.1.*dt_proj: the model's forward never calls"
    ) as got:
        merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    assert len(got.value.problems) == 1


@pytest.mark.parametrize(
    ("config", "words", "factor"),
    [
        (LoraConfig(target_modules=ATTENTION), ["layers.0.self_attn.q_proj.lora_B"], "lora_B"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), ["lora_embedding_A"],
         "lora_embedding_A"),
        (LoHaConfig(target_modules=ATTENTION), ["1.self_attn.v_proj.hada_w1_a"], "hada_w1_a"),
    ],
)  # fmt: skip
def test_some_of_zeros_are_told_and_stay_the_bases(config, words, factor, tmp_path):
    trained(tmp_path, llama(), config)
    zeroed(tmp_path, words)
    report = merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    [warning] = told(report)
    assert f"{factor} is all zero in 1 module of" in warning
    base, found = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "out"))
    same = {name for name in base if torch.equal(base[name], found[name])}
    deltas = {step.out.name for step in report.plan.steps() if step.deltas}
    assert len(same & deltas) == 1


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["lora_B"], "lora_B is all zero, so this update changes nothing"),
        (["layers.0.self_attn.q_proj.lora_A"], "lora_A is all zero"),
        (["layers.0.self_attn.q_proj.lora_"], "lora_A is all zero"),
    ],
)
def test_all_of_zeros_and_what_no_training_leaves_are_refused(words, pattern, tmp_path):
    trained(tmp_path, llama(), LoraConfig(target_modules=ATTENTION))
    zeroed(tmp_path, words)
    with pytest.raises(FitError, match=pattern) as refused:
        merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    assert "--allow-noop accepts it" in str(refused.value)
    report = merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", allow_noop=True)
    assert "merged = unmerged in float64" in [check.name for check in report.checks]


def test_a_result_that_lacks_an_update_is_no_idle_one(tmp_path):
    """The planted fault beside an idle module: a weight that the merge forgot."""
    from lora_export.api import verify

    trained(tmp_path, llama(), LoraConfig(target_modules=ATTENTION))
    zeroed(tmp_path, ["layers.0.self_attn.q_proj.lora_B"])
    merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    base, out = (tmp_path / n / "model.safetensors" for n in ("base", "out"))
    tensors, name = load_file(out), "model.layers.1.self_attn.q_proj.weight"
    save_file({**tensors, name: load_file(base)[name]}, out, metadata={"format": "pt"})
    (tmp_path / "out/lora_export.json").unlink()
    with pytest.raises(VerificationError, match="every target changed"):
        verify(tmp_path / "out", base=tmp_path / "base", adapters=[tmp_path / "adapter"])


def test_it_is_exported(tmp_path):
    trained(tmp_path, llama(), LoraConfig(target_modules=ATTENTION))
    zeroed(tmp_path, ["layers.0.self_attn.q_proj.lora_B"])
    report = export_onnx(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out.onnx")
    assert "ONNX Runtime = unmerged" in [check.name for check in report.checks]
    assert told(report)
