"""What PEFT says an adapter does: the unmerged model's outputs, and what its merge saves.

An oracle that drops part of the adapter, or whose merge differs from its own unmerged model, would
prove nothing; both are looked for in every case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from peft.utils.save_and_load import load_peft_weights
from safetensors.torch import load_file
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from peft_matrix.architectures import Architecture

HEADROOM = 10  # between the noise of the arithmetic and what counts as a difference


@dataclass(frozen=True)
class Outputs:
    """What a model answers to the architecture's inputs."""

    values: torch.Tensor

    def distance(self, other: Outputs) -> float:
        """The largest difference; NaN counts as infinite."""
        worst = (self.values - other.values).abs().max().item()
        return worst if worst == worst else float("inf")  # noqa: PLR0124 - NaN is unlike itself


@dataclass(frozen=True)
class Unmerged:
    """The model with its adapter live, in its own precision and in float64."""

    own: Outputs
    exact: Outputs
    eps: float

    @property
    def tolerance(self) -> float:
        """Ten times the noise of the model's own precision, which both models have."""
        floor = 4 * self.eps * self.exact.values.abs().max().item()
        return HEADROOM * max(self.own.distance(self.exact), floor)


def run(model: Any, architecture: Architecture, dtype: torch.dtype | None = None) -> Outputs:
    """The model's outputs, in `dtype` if one is given (the model keeps it then)."""
    if dtype is not None:
        model = model.to(dtype)
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in architecture.inputs().items()
    }
    with torch.no_grad():
        answer = model(**inputs)
    values = answer.logits if hasattr(answer, "logits") else answer.logits_per_image
    return Outputs(values.double())


def load_adapted(architecture: Architecture, base: Path, adapter: Path) -> Any:
    """Base and adapter as a user loads them, every tensor of the adapter's file in its place."""
    model = architecture.load_base(base)
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    check_consumed(adapted, adapter)
    return adapted


def check_consumed(adapted: Any, adapter: Path) -> None:
    """Every key of the file is in the model, with the file's value."""
    file = load_peft_weights(str(adapter), device="cpu")
    inside = peft.get_peft_model_state_dict(adapted)
    if any(".experts.0." in key for key in file):
        # PEFT fuses factors of single experts, with zeros between them.
        for role in ("lora_A", "lora_B"):
            assert _energy(file, role) == pytest.approx(_energy(inside, role), rel=1e-6)
        return
    lost = sorted(file.keys() ^ inside.keys())
    assert not lost, f"PEFT did not take these keys of the adapter's file: {lost}"
    different = [
        name for name, value in file.items() if not torch.equal(inside[name].to(value), value)
    ]
    assert not different, f"PEFT loaded other values than the file's: {different}"


def _energy(tensors: dict[str, torch.Tensor], role: str) -> float:
    return sum(value.double().square().sum().item() for n, value in tensors.items() if role in n)


def unmerged(architecture: Architecture, adapted: Any) -> Unmerged:
    """Run `adapted`, which is float64 afterwards: no merge of anybody's took part in it."""
    eps = torch.finfo(adapted.dtype).eps
    return Unmerged(run(adapted, architecture), run(adapted, architecture, torch.float64), eps)


def merged_modules(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT's merge makes of the adapted weights alone, each of them in a module of its own.

    So it was in transformers 4. PEFT rounds otherwise where they are parts of one parameter.
    """
    root = nn.Module()
    targets = {key.split(".lora_")[0] for key in load_peft_weights(str(adapter), device="cpu")}
    weights = load_file(base / "model.safetensors")
    for module in sorted(target.removeprefix("base_model.model.") for target in targets):
        weight = weights[f"{module}.weight"]
        parent = root
        *path, last = module.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        linear = nn.Linear(*weight.T.shape, bias=False, dtype=weight.dtype)
        linear.weight.data = weight
        parent.add_module(last, linear)
    adapted = peft.PeftModel.from_pretrained(root, adapter)
    return dict(adapted.merge_and_unload().state_dict())


def merged(adapted: Any, folder: Path, *, safe: bool = False) -> dict[str, torch.Tensor]:
    """What PEFT's merge of `adapted` leaves on disk, after transformers saved it."""
    adapted.merge_and_unload(safe_merge=safe).save_pretrained(folder)
    return load_file(folder / "model.safetensors")
