"""A merged folder runs as it is: transformers loads it without a warning, whatever the base was."""

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify

MODULE = "model.layers.0.mlp.gate_proj"
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
GENERATION = '{"temperature":   0.5, "do_sample": true}'


def build(folder, dtype=torch.float32):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(
        folder, max_shard_size="2KB" if folder.name.startswith("shard") else "1GB"
    )
    words = {f"w{n}": n for n in range(15)} | {"<unk>": 15}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - a word, no secret
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=CHAT)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(GENERATION)
    return folder


def as_bin(folder):
    """The same folder with torch pickles, as older versions of transformers wrote them."""
    for file in sorted(folder.glob("*.safetensors")):
        name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), folder / name)
        file.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return folder


def fp8_beside(folder):
    """A tensor in float8 that the adapter does not touch, without any scale."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


FOLDERS = {
    "single safetensors": lambda path: build(path / "one"),
    "sharded safetensors": lambda path: build(path / "shards"),
    "bin": lambda path: as_bin(build(path / "one")),
    "sharded bin": lambda path: as_bin(build(path / "shards")),
    "float16": lambda path: build(path / "one", torch.float16),
    "bfloat16": lambda path: build(path / "shards", torch.bfloat16),
    "float8 beside": lambda path: fp8_beside(build(path / "one", torch.bfloat16)),
    "float8 beside, bin": lambda path: as_bin(fp8_beside(build(path / "one", torch.bfloat16))),
}


@pytest.fixture
def adapter(tmp_path):
    torch.manual_seed(1)
    a, b = torch.randn(2, 8) / 10, torch.randn(12, 2) / 10
    low = {f"{MODULE}.lora_A": a, f"{MODULE}.lora_B": b}
    save_file(low, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def weights(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def stored(folder):
    found = weights(folder)
    for file in folder.glob("*.bin"):
        found |= torch.load(file)
    return found


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
def test_it_loads_without_a_warning(make, adapter, tmp_path, caplog, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    base, out = make(tmp_path), tmp_path / "out"
    merge(base, [adapter], out, alpha=4)
    assert verify(out, base=base, adapters=[adapter]).passed
    before, after = stored(base), weights(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        same = torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8))
        assert same is (name != f"{MODULE}.weight")
    kept = ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"]
    for name in kept:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert not [path for path in out.iterdir() if path.suffix == ".bin"]

    logging.enable_propagation()
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(
            out, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    logging.disable_propagation()
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    assert not any(info.values())
    assert model.generation_config.temperature == 0.5
    assert str(model.dtype) == f"torch.{json.loads((out / 'config.json').read_text())['dtype']}"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False)
    assert rendered == "w3"


def test_the_card_s_own_words_load_it(adapter, tmp_path, monkeypatch):
    base, out = build(tmp_path / "one"), tmp_path / "out"
    merge(base, [adapter], out, alpha=4)
    [snippet] = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(out)
    names = {}
    exec(snippet, names)
    loaded = names["model"].state_dict()[f"{MODULE}.weight"]
    assert torch.equal(loaded, weights(out)[f"{MODULE}.weight"])
    assert names["tokenizer"].chat_template == CHAT


def test_a_declaration_of_quantisation_without_any_does_not_break_it(adapter, tmp_path):
    from transformers import AutoModelForCausalLM

    base, out = build(tmp_path / "one"), tmp_path / "out"
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config, indent=2))
    merge(base, [adapter], out, alpha=4)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
