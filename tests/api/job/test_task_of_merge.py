"""merge --task: the class that does the task is the witness, where config.json names another."""

import loralib
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import UsageError

PROVEN = "merged = unmerged (torch)"
QUERY = "roberta.encoder.layer.{}.attention.self.query"


def config(**more):
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=40, pad_token_id=1, **more,
    )  # fmt: skip


@pytest.fixture
def base(tmp_path):
    """What the hub has: roberta.* and lm_head.*, no classifier."""
    from transformers import RobertaForMaskedLM

    torch.manual_seed(0)
    RobertaForMaskedLM(config()).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def peft_adapter(folder, base):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification as Auto

    model = get_peft_model(
        Auto.from_pretrained(base, num_labels=3),
        LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "lora")
    fresh = Auto.from_pretrained(base, num_labels=3)
    return PeftModel.from_pretrained(fresh, folder / "lora").merge_and_unload().state_dict()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("task", [None, "text-classification"])
def test_a_peft_head_on_a_base_without_one(task, base, tmp_path):
    wanted = peft_adapter(tmp_path, base)
    report = merge(base, [tmp_path / "lora"], tmp_path / "out", task=task)
    assert PROVEN in [check.name for check in report.checks]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    told = any("RobertaForSequenceClassification (--task" in note for note in report.warnings)
    assert told == bool(task)


@pytest.fixture
def released(base, tmp_path):
    """A loralib file as microsoft/LoRA released it: factors and a classifier; its merged state."""
    from transformers import RobertaForSequenceClassification

    torch.manual_seed(1)
    model = RobertaForSequenceClassification(config(num_labels=3))
    model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    for number, layer in enumerate(model.roberta.encoder.layer):
        query = loralib.Linear(32, 32, r=4, lora_alpha=16)
        query.load_state_dict(
            under(QUERY.format(number), load_file(base / "model.safetensors")), strict=False
        )
        torch.nn.init.normal_(query.lora_B)
        layer.attention.self.query = query
    kept = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "lora_" in name or name.startswith("classifier.")
    }
    save_file(kept, tmp_path / "lora.safetensors")
    model.train()
    model.eval()
    return {n: t.clone() for n, t in model.state_dict().items() if "lora_" not in n}


def under(module, tensors):
    return {n.removeprefix(f"{module}."): t for n, t in tensors.items() if n.startswith(module)}


def test_a_head_of_a_loralib_file(base, released, tmp_path):
    lora = [tmp_path / "lora.safetensors"]
    options = {"alpha": 16, "allow_new": ["classifier.*"], "task": "text-classification"}
    report = merge(base, lora, tmp_path / "out", **options)
    assert PROVEN in [check.name for check in report.checks]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in released.items())


NETWORK = '''"""RoBERTa as microsoft/LoRA's NLU example builds it."""
import loralib, transformers
INPUTS = ("input_ids=int64[batch,sequence]<60", "attention_mask=int64[batch,sequence]<2")
def build():
    config = transformers.RobertaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_labels=3,
        num_attention_heads=2, max_position_embeddings=40, pad_token_id=1)
    model = transformers.RobertaForSequenceClassification(config)
    for layer in model.roberta.encoder.layer:
        layer.attention.self.query = loralib.Linear(32, 32, r=4, lora_alpha=16)
    return model
'''


@pytest.mark.parametrize("kind", ["folder", "file with tied names"])
def test_a_base_with_a_head_that_the_network_lacks(kind, base, released, tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    out = tmp_path / "out"
    if kind != "folder":
        stored = load_file(base / "model.safetensors")
        stored["lm_head.decoder.weight"] = stored["roberta.embeddings.word_embeddings.weight"]
        base, out = tmp_path / "base.bin", tmp_path / "out.safetensors"
        torch.save(stored, base)
    lora = [tmp_path / "lora.safetensors"]
    report = merge(base, lora, out, model=f"{tmp_path}/net.py:build")
    assert PROVEN in [check.name for check in report.checks]
    [note] = [note for note in report.warnings if "lm_head" in note]
    assert "the result keeps them" in note
    found = load_file(out / "model.safetensors" if kind == "folder" else out)
    assert all(torch.equal(found[name], tensor) for name, tensor in released.items())
    assert "lm_head.bias" in found


def test_a_task_beside_a_network_of_ones_own_is_refused(base, released, tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    model = f"{tmp_path}/net.py:build"
    with pytest.raises(UsageError, match="is for Hugging Face folders"):
        merge(base, [tmp_path / "lora.safetensors"], dry_run=True, model=model, task="fill-mask")


def test_a_task_without_any_folder_of_transformers_is_told(tmp_path):
    base, adapter = tmp_path / "base.safetensors", tmp_path / "lora.safetensors"
    save_file({"fc.weight": torch.randn(6, 8)}, base)
    save_file({"fc.lora_A": torch.randn(2, 8), "fc.lora_B": torch.randn(6, 2)}, adapter)
    settings = {"alpha": 4, "dry_run": True}
    report = merge(base, [adapter], task="text-classification", **settings)
    assert any("--task text-classification had no effect" in note for note in report.warnings)
    assert not any("--task" in note for note in merge(base, [adapter], **settings).warnings)
