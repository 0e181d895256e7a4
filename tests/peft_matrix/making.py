"""Adapters made by PEFT itself, every parameter of which has been moved from where it began.

PEFT starts adapters without effect. One that keeps any such value would hide that it is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from peft_matrix.architectures import Architecture
    from peft_matrix.options import Option

# Factors are drawn so large that the update is about as large as the weight. What has a value that
# means something (a norm, a bias, a whole layer) is moved a little from it.
_DRAWN = {"lora_A": 0.15, "lora_B": 0.15, "lora_E": 1.0, "lora_embedding_": 0.15, "hada_": 0.4,
          "lokr_": 0.3, "vera_lambda": 0.5}  # fmt: skip
_MOVED = 0.1
# What PEFT saves with an adapter though nobody trained it.
_UNTRAINED = ("base_layer.weight", "vera_A", "vera_B", "original_module.bias")


def make_adapter(
    architecture: Architecture, option: Option, base: Path, folder: Path, seed: int = 0
) -> None:
    """Save an adapter of kind `option` for the model in `base`, as PEFT does after training."""
    if option.of_transformers_4:
        _write_experts(option.config(architecture), base, folder)
        return
    model = architecture.load_base(base)
    adapted = peft.get_peft_model(model, option.config(architecture))
    before = {name: tensor.clone() for name, tensor in _saved(adapted).items()}
    train(adapted, seed)
    unmoved = [name for name, value in _saved(adapted).items() if torch.equal(value, before[name])]
    unexplained = [name for name in unmoved if not name.endswith(_UNTRAINED)]
    assert not unexplained, f"these parameters kept their initial values: {unexplained}"
    if option.allocated:
        _allocate(adapted)
    # Its card takes PEFT as long as its weights, and only people read it.
    adapted.create_or_update_model_card = lambda _: None
    adapted.save_pretrained(folder, safe_serialization=option.safetensors)
    option.edit(folder)
    if option.half:
        _cast(folder / "adapter_model.safetensors", model.dtype)


def _saved(adapted: Any) -> dict[str, torch.Tensor]:
    return peft.get_peft_model_state_dict(adapted)


def train(adapted: Any, seed: int = 0) -> None:
    """Move every trainable parameter: seeded noise in the place of training."""
    draw = torch.Generator().manual_seed(11 + seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
            spread = next((size for part, size in _DRAWN.items() if part in name), None)
            if spread is not None:
                parameter.copy_(noise * spread)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1 + noise * _MOVED)
            else:
                parameter.add_(noise * _MOVED)


def _write_experts(config: Any, base: Path, folder: Path) -> None:
    """An adapter as transformers 4 made it, which built a module for each weight of the base."""
    draw = torch.Generator().manual_seed(12)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in config.target_modules:
            outputs, inputs = weight.shape
            for role, shape in (("A", (config.r, inputs)), ("B", (outputs, config.r))):
                factor = torch.randn(shape, generator=draw) * _DRAWN[f"lora_{role}"]
                tensors[f"base_model.model.{module}.lora_{role}.weight"] = factor
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _allocate(adapted: Any) -> None:
    """Keep every rank but the second one, and in some modules the first, as AdaLoRA's end does."""
    modules = [name for name, _ in adapted.base_model.model.named_modules()]
    targets = [name.removesuffix(".lora_E") for name in modules if name.endswith(".lora_E")]
    adapted.peft_config["default"].rank_pattern = {
        f"{name}.lora_E.default": [place % 2 == 0, False, True, True, True, True]
        for place, name in enumerate(targets)
    }


def _cast(path: Path, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path)
