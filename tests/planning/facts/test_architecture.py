"""What the base's architecture says of a layer, held against transformers' own modules."""

import json
import warnings

import loralib
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import UsageError
from lora_export.models.network.loralib_modules import read_facts
from lora_export.planning.facts.architecture import KNOWN_TYPES, layer_facts
from lora_export.records import Checkpoint

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")


def skeleton(model_type):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(model_type)
    config.vocab_size = getattr(config, "vocab_size", None) or 33  # esm has no default
    for name in LAYERS:
        if getattr(config, name, None):
            setattr(config, name, 1)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return AutoModel.from_config(config)


@pytest.mark.parametrize("model_type", sorted(KNOWN_TYPES))
def test_the_table_says_what_transformers_builds(model_type, tmp_path):
    base = Checkpoint(tmp_path, "folder", (), config={"model_type": model_type})
    built = read_facts(skeleton(model_type), "transformers").modules
    assert len(built) > 4
    for name, facts in built.items():
        told = layer_facts(base, name)
        assert (told.kind, told.fan_in_fan_out) == (facts.kind, facts.fan_in_fan_out), name


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mine"}, {"model_type": "bert", "auto_map": {"AutoModel": "m.M"}}]
)
def test_an_architecture_of_unknown_code_says_nothing(config, tmp_path):
    base = Checkpoint(tmp_path, "folder", (), config=config)
    assert layer_facts(base, "encoder.layer.0.attention.self.query") is None


def folder_of(tmp_path, model, module, layer, *, config=None):
    """A Hugging Face folder and a loralib file for one of its modules; what loralib merges."""
    model.save_pretrained(tmp_path / "base")
    if config:
        path = tmp_path / "base" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with torch.no_grad():
        layer.weight.copy_(model.get_submodule(module).weight)
        for factor in (layer.lora_A, layer.lora_B):
            factor.normal_()
    name = module.removeprefix(f"{model.base_model_prefix}.")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    module = module if f"{module}.weight" in stored else name
    factors = {f"{module}.lora_A": layer.lora_A.data, f"{module}.lora_B": layer.lora_B.data}
    save_file({key: value.clone() for key, value in factors.items()}, tmp_path / "lora.safetensors")
    layer.train()
    layer.eval()
    return f"{module}.weight", layer.weight.data


def bert(**sizes):
    from transformers import BertConfig, BertForMaskedLM

    base = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 32}  # fmt: skip
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**{**base, **sizes}))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60, n_positions=40)
    )


def image_gpt():  # transformers knows its layers, the table does not
    from transformers import ImageGPTConfig, ImageGPTModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 40}
    return ImageGPTModel(ImageGPTConfig(**sizes))


LORA = {"r": 4, "lora_alpha": 8}
QUERY = "bert.encoder.layer.0.attention.self.query"
SQUARE = {
    "bert": (bert, QUERY, lambda: loralib.Linear(32, 32, **LORA)),
    "gpt2": (
        gpt2,
        "transformer.h.0.attn.c_proj",
        lambda: loralib.Linear(32, 32, fan_in_fan_out=True, **LORA),
    ),
    "positions of bert": (
        bert,
        "bert.embeddings.position_embeddings",
        lambda: loralib.Embedding(32, 32, **LORA),
    ),
    "not in the table": (
        image_gpt,
        "h.0.attn.c_proj",
        lambda: loralib.Linear(32, 32, fan_in_fan_out=True, **LORA),
    ),
}


@pytest.mark.parametrize("name", SQUARE)
def test_no_option_is_needed_for_a_square_weight_of_a_folder(name, tmp_path):
    build, module, layer = SQUARE[name]
    key, wanted = folder_of(tmp_path, build(), module, layer())
    lora = [tmp_path / "lora.safetensors"]
    report = merge(tmp_path / "base", lora, tmp_path / "out", alpha=8, verify=False)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[key], wanted)
    if "positions" not in name:
        assert any("1 square weight read as Linear" in choice for choice in report.plan.choices)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out is False in config.json .*bert.* but True in"),
        ({"kind": "embedding"}, "kind is a layer that is no embedding in config.json .*bert"),
    ],
)
def test_an_option_that_contradicts_the_architecture_is_refused(given, words, tmp_path):
    folder_of(tmp_path, bert(), QUERY, loralib.Linear(32, 32, **LORA))
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"alpha": 8, **given}))
    with pytest.raises(UsageError, match=words):
        merge(tmp_path / "base", [tmp_path / "lora.safetensors"], dry_run=True, hparams=facts)


def test_an_option_may_repeat_the_architecture(tmp_path):
    key, wanted = folder_of(tmp_path, bert(), QUERY, loralib.Linear(32, 32, **LORA))
    lora, out = [tmp_path / "lora.safetensors"], tmp_path / "out"
    merge(tmp_path / "base", lora, out, alpha=8, fan_in_fan_out=False, verify=False)
    assert torch.equal(load_file(out / "model.safetensors")[key], wanted)


def test_code_of_its_own_is_asked_for(tmp_path):
    config = {"auto_map": {"AutoModel": "mine.Model"}, "model_type": "mine"}
    folder_of(tmp_path, bert(), QUERY, loralib.Linear(32, 32, **LORA), config=config)
    with pytest.raises(UsageError, match="the file does not show which"):
        merge(tmp_path / "base", [tmp_path / "lora.safetensors"], dry_run=True, alpha=8)
