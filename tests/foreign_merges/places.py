"""Tiny bases and adapters of transformers and PEFT, made once and shared by all merges."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 80,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 16,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj"]
RANK, ALPHA = 8, 24
"""The scaling is 3, that of rslora 8.5: no mistake gives the factor of another."""


def _llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0, **more))


BASES = {
    "llama": _llama,
    "tied": lambda: _llama(tie_word_embeddings=True),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=80, n_positions=16)
    ),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other": {},
    "rank 4": {"r": 4},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"k_proj": 2}},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 7]},
    "biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "tables": {"target_modules": ["q_proj", "embed_tokens"]},
    "attention": {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True},
}


@dataclass
class Inputs:
    """Bases and adapters below one folder, each made when it is first asked for."""

    root: Path
    made: set[str] = field(default_factory=set)

    def base(self, name: str, dtype: str = "float32") -> Path:
        folder = self.root / f"{name} {dtype}"
        if not folder.exists():
            torch.manual_seed(0)
            BASES[name]().to(getattr(torch, dtype)).save_pretrained(folder)
            (folder / "tokenizer.json").write_text("{}")
        return folder

    def adapter(self, base: Path, name: str) -> Path:
        folder = base.parent / f"{base.name} {name}"
        if not folder.exists():
            torch.manual_seed(1 + list(ADAPTERS).index(name))
            options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ATTENTION}
            config = LoraConfig(**{**options, **ADAPTERS[name]})
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(folder)
        return folder


@dataclass
class Place:
    """One merge: its base, its adapter, and the folder that the merge is written to."""

    inputs: Inputs
    out: Path
    base: Path
    adapter: Path

    def load(self, base: Path | None = None, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(base or self.base, **options)

    def peft(self, model: Any = None, adapter: Path | None = None) -> Any:
        return PeftModel.from_pretrained(model or self.load(), adapter or self.adapter)

    def merge(self, **options: Any) -> Any:
        return self.peft().merge_and_unload(**options)

    def edited(self, without: str = "-", **config: Any) -> Path:
        """Return a copy of the adapter with another config, and without some of its tensors."""
        folder = self.out.parent / "edited"
        shutil.copytree(self.adapter, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        weights = folder / "adapter_model.safetensors"
        kept = {k: v for k, v in load_file(weights).items() if without not in k}
        save_file(kept, weights, {"format": "pt"})
        return folder

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "model.safetensors")

    def rewrite(self, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, self.out / "model.safetensors", {"format": "pt"})


def layers(model: Any) -> Any:
    """Yield (name, layer) of every layer that PEFT adapts."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scaling", None), dict):
            yield name, module


def scaled(model: Any, factor: float) -> Any:
    """Return the model merged with every scaling times `factor`."""
    for _, layer in layers(model):
        layer.scaling = {key: value * factor for key, value in layer.scaling.items()}
    return model.merge_and_unload()


def changed(model: Any, change: Any, ending: str = "") -> Any:
    """Return the model with `change` of every weight whose name ends so."""
    for name, parameter in model.named_parameters():
        if name.endswith(ending) and parameter.dim() > 1:
            parameter.data = change(parameter.data)
    return model
