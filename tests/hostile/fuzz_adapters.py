"""Mutated adapters of PEFT: our merge has the bits of PEFT's, or is refused."""

from __future__ import annotations

import copy
import json
import logging
import random
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import torch
from hostile.fuzzed import Fuzzed
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import lora_export
from lora_export.errors import LoraExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Adapter = tuple[dict[str, Any], dict[str, torch.Tensor]]

PREFIX = "base_model.model."


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 6)
        self.v_proj = nn.Linear(6, 4, bias=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.fc = nn.Linear(6, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(6, 3)


_KINDS: tuple[dict[str, Any], ...] = (
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["q_proj", "fc"], "use_rslora": True},
    {"target_modules": ["q_proj", "v_proj", "emb"], "modules_to_save": ["head"]},
    {"target_modules": ["q_proj", "fc"], "use_dora": True},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.attn.q_proj": 3},
     "alpha_pattern": {"v_proj": 3}},
    {"target_modules": ["q_proj", "fc"], "bias": "lora_only"},
)  # fmt: skip
_FIELDS = (
    "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "target_modules",
    "rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "lora_bias", "peft_type", "trainable_token_indices",
    "layer_replication", "task_type", "lora_dropout", "target_parameters", "inference_mode",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 8, 16, 1.5, 1e9, "none", "all", "lora_only", "q_proj",
    "all-linear", ".*", "", [], ["q_proj"], ["fc"], ["head"], ["emb"], ["layers.0.attn.q_proj"], {},
    {"q_proj": 2}, {"fc": 2}, {".*": 2}, {"layers.0.attn.q_proj": 2}, {"^layers.1": 3}, {"proj": 3},
    [0], [1], "LORA", "LOHA", "IA3", [[0, 2]], [1, 2],
)  # fmt: skip
_RENAMES = (
    ("lora_A", "lora_B"), ("lora_B", "lora_A"), ("layers.0", "layers.1"), ("layers.1", "layers.7"),
    (PREFIX, ""), (".weight", ""), (".weight", ".default.weight"), (".weight", ".other.weight"),
    ("lora_", "Lora_"), ("q_proj", "v_proj"), ("q_proj", "k_proj"), (PREFIX, f"{PREFIX}model."),
    ("fc", "head"), ("attn.", ""),
)  # fmt: skip
_ADDED = {
    "layers.0.attn.q_proj.lora_magnitude_vector": (6,), "head.weight": (3, 6),
    "emb.weight": (10, 6),
    "layers.0.fc.bias": (8,), "layers.0.attn.q_proj.weight": (6, 6), "extra": (6,),
    "layers.0.attn.q_proj.lora_B.bias": (6,), "head.modules_to_save.weight": (3, 6),
}  # fmt: skip


def _seeds(base: nn.Module, folder: Path) -> list[Adapter]:
    found = []
    for place, kind in enumerate(_KINDS):
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, lora_alpha=4, **kind))
        draw = torch.Generator().manual_seed(place)
        for value in model.parameters():
            if value.requires_grad:
                value.data += torch.randn(value.shape, generator=draw) * 0.3
        model.save_pretrained(folder / f"seed{place}")
        config = json.loads((folder / f"seed{place}" / "adapter_config.json").read_text())
        found.append((config, load_file(folder / f"seed{place}" / "adapter_model.safetensors")))
    return found


def _changed(value: torch.Tensor, draw: random.Random) -> torch.Tensor:
    ways: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        torch.t, lambda x: x[:-1], lambda x: x[:, :-1], torch.flatten, lambda x: x[None],
        torch.zeros_like, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double,
        lambda x: (x * 10).int(), lambda x: x * float("nan"), lambda x: x * 1e38, lambda x: x[:0],
        lambda _x: torch.tensor(1.0), lambda x: x * 1e-30,
    )  # fmt: skip
    try:
        return draw.choice(ways)(value).contiguous().clone()
    except (IndexError, RuntimeError):  # of a vector
        return value


def mutated(seed: Adapter, draw: random.Random) -> Adapter:
    """Return a config and tensors with one to three changes."""
    config, tensors = copy.deepcopy(seed[0]), dict(seed[1])
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        key = draw.choice(sorted(tensors)) if tensors else ""
        way = draw.randrange(9)
        if way < 3 or not key:
            config[draw.choice(_FIELDS)] = draw.choice(_VALUES)
        elif way == 3:
            del tensors[key]
        elif way in {4, 5}:
            old, new = draw.choice(_RENAMES)
            value = tensors.pop(key) if way == 4 else tensors[key].clone()
            tensors[key.replace(old, new)] = value
        elif way == 6:
            tensors[key] = _changed(tensors[key], draw)
        elif way == 7:
            name, shape = draw.choice(sorted(_ADDED.items()))
            tensors[PREFIX + name] = torch.ones(shape)
        else:
            config.pop(draw.choice(_FIELDS), None)
    return config, tensors


def run(seed: int, count: int, folder: Path) -> Fuzzed:
    """Try `count` adapters: what we merge, PEFT merges to the same bits."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    base, draw, found = Net(), random.Random(seed), Fuzzed()
    save_file(base.state_dict(), folder / "base.safetensors")
    seeds = _seeds(base, folder)
    adapter, out = folder / "adapter", folder / "out.safetensors"
    for _ in range(count):
        config, tensors = mutated(draw.choice(seeds), draw)
        shutil.rmtree(adapter, ignore_errors=True)
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, adapter / "adapter_model.safetensors")
        with found.example((config, {key: list(one.shape) for key, one in tensors.items()})):
            try:
                lora_export.merge(
                    folder / "base.safetensors", [adapter], out, jobs=1, verify=False, force=True
                )
            except LoraExportError:
                continue
            found.accepted += 1
            _compare(base, adapter, load_file(out), found)
    return found


def _compare(base: nn.Module, adapter: Path, ours: dict[str, torch.Tensor], found: Fuzzed) -> None:
    try:
        model = PeftModel.from_pretrained(copy.deepcopy(base), adapter)
        theirs = model.merge_and_unload().state_dict()
    except Exception as error:  # noqa: BLE001 - PEFT raises anything
        found.refused(f"{type(error).__name__}: {error}")
        return
    found.check(theirs.keys() == ours.keys(), "PEFT's result has other tensors")
    wrong = [key for key, value in theirs.items() if not torch.equal(value, ours[key])]
    found.check(not wrong, f"PEFT merges to another {wrong[:1]}")
