"""Models made of loralib's own layers, with factors drawn at random, and what eval() makes of them.

The oracle of every exactness test: loralib 0.1.2 itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import loralib as lora
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16 base, fp32 factors": (torch.bfloat16, torch.float32),
    "all bf16": (torch.bfloat16, torch.bfloat16),
    "all fp16": (torch.float16, torch.float16),
}
ALPHA = 7  # over no tested rank a power of two


def layer(kind: str, rank: int) -> torch.nn.Module:
    """One adapted layer of each kind; sizes are odd where the kind allows it."""
    shared = {"r": rank, "lora_alpha": ALPHA}
    made: dict[str, Callable[[], torch.nn.Module]] = {
        "linear": lambda: lora.Linear(65, 33, **shared),
        "linear fan_in_fan_out": lambda: lora.Linear(65, 33, fan_in_fan_out=True, **shared),
        "linear square": lambda: lora.Linear(48, 48, **shared),
        "linear square fan_in_fan_out": lambda: lora.Linear(48, 48, fan_in_fan_out=True, **shared),
        "linear large": lambda: lora.Linear(384, 768, **shared),
        "embedding": lambda: lora.Embedding(101, 24, **shared),
        "conv2d k=1": lambda: lora.Conv2d(6, 10, 1, **shared),
        "conv2d k=3": lambda: lora.Conv2d(6, 10, 3, **shared),
        "conv2d k=3 groups=2": lambda: lora.Conv2d(6, 10, 3, groups=2, **shared),
        "conv2d k=5 depthwise": lambda: lora.Conv2d(8, 8, 5, groups=8, **shared),
        "conv1d k=1": lambda: lora.Conv1d(7, 9, 1, **shared),
        "conv3d k=1": lambda: lora.Conv3d(7, 9, 1, **shared),
        **{
            f"merged {''.join(map(str, blocks))}{' fan_in_fan_out' if turned else ''}": (
                lambda blocks=blocks, turned=turned: lora.MergedLinear(
                    40,
                    24 * len(blocks),
                    enable_lora=[bool(block) for block in blocks],
                    fan_in_fan_out=turned,
                    **shared,
                )
            )
            for blocks in ((1, 0, 1), (1, 1, 1), (0, 1, 0), (1, 1), (0, 0, 0, 1), (1,))
            for turned in (False, True)
        },
    }
    return made[kind]()


KINDS = (
    "linear", "linear fan_in_fan_out", "linear square", "linear square fan_in_fan_out",
    "linear large", "embedding", "conv2d k=1", "conv2d k=3", "conv2d k=3 groups=2",
    "conv2d k=5 depthwise", "conv1d k=1", "conv3d k=1",
    *(
        f"merged {blocks}{turned}"
        for blocks in ("101", "111", "010", "11", "0001", "1")
        for turned in ("", " fan_in_fan_out")
    ),
)  # fmt: skip


class Wrapped(torch.nn.Module):
    """The layer inside a model that also has a norm and a plain layer."""

    def __init__(self, kind: str, rank: int) -> None:
        super().__init__()
        self.block = layer(kind, rank)
        self.norm = torch.nn.LayerNorm(5)
        self.head = torch.nn.Linear(5, 3)


def trained(kind: str, rank: int, dtypes: tuple[torch.dtype, torch.dtype]) -> Wrapped:
    """A model with random base and factors, unmerged; biases moved from their initial values."""
    torch.manual_seed(len(kind) * 100 + rank)
    model = Wrapped(kind, rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    base, factors = dtypes
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(factors if "lora_" in name else base)
    return model.train()


def save_case(model: torch.nn.Module, folder: Path, *, bias: str = "none") -> tuple[Path, Path]:
    """(base.safetensors, lora.safetensors): the base with other biases than the adapter's."""
    adapter = {k: v.detach().contiguous() for k, v in lora.lora_state_dict(model, bias).items()}
    base = {
        name: (tensor.detach() + 1 if name in adapter else tensor.detach()).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.rpartition(".")[2].startswith("lora_")
    }
    save_file(base, folder / "base.safetensors")
    save_file(adapter, folder / "lora.safetensors")
    return folder / "base.safetensors", folder / "lora.safetensors"


def evaluated(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What loralib's own eval() leaves in the weights."""
    merged = copy.deepcopy(model).eval()
    return {
        name: tensor
        for name, tensor in merged.state_dict().items()
        if not name.rpartition(".")[2].startswith("lora_")
    }
