"""Exports without a fault, of adapters weak and strong, on weights small and large: a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any
from unittest import mock

import loralib as lora
import small_gpt
import torch
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from safetensors.torch import load_file, save_file

from detection.bench import FACTORY, LORALIB
from lora_export.api import export_onnx
from lora_export.api.proof import file_proof
from lora_export.errors import LoraExportError
from lora_export.onnx_export import export as writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from peft_matrix.architectures import Architecture


@dataclass(frozen=True)
class Model:
    """An architecture, with what is other in its configuration."""

    architecture: str
    config: Mapping[str, Any]

    def made(self) -> Architecture:
        """The architecture, of these sizes."""
        plain = ARCHITECTURES[self.architecture]

        def config() -> Any:
            given = plain.config()
            return type(given).from_dict({**given.to_dict(), **self.config})

        return replace(plain, config=config) if self.config else plain


MODELS: dict[str, Model] = {
    "bert": Model("bert", {}),
    "bert of 4 layers": Model("bert", {"num_hidden_layers": 4}),
    "roberta 64 wide": Model("roberta", {"hidden_size": 64, "num_attention_heads": 2}),
    "albert": Model("albert", {}),
    "gpt2": Model("gpt2", {}),
    "gpt2 of 1 layer, 96 wide": Model("gpt2", {"n_layer": 1, "n_embd": 96}),
    "gpt-neox": Model("gpt-neox", {}),
    "llama": Model("llama", {}),
    "llama 64 wide": Model("llama", {"hidden_size": 64, "num_key_value_heads": 1}),
    "t5": Model("t5", {}),
    "vit": Model("vit", {}),
    "clip": Model("clip", {}),
    LORALIB: Model(LORALIB, {}),
}
KINDS = ("plain", "rslora", "dora")
STRENGTHS = (0.02, 0.2, 1.0, 3.0)
"""Times the factor B; at 1, the update is about as large as the weight."""

SIZES = {1e-3: ("plain", "rslora"), 1e2: KINDS}
"""Times the base's matrices, and which adapters: DoRA keeps the size of the weights, and what it
does to very small ones may truly be lost in the noise, which is refused as it should be."""


@dataclass(frozen=True)
class Export:
    """One export: the adapter's kind and strength, the size of the base's weights, the seed."""

    kind: str
    strength: float
    size: float
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}, B x {self.strength}, base x {self.size}, seed {self.seed}"


def exports() -> list[Export]:
    """Every kind in every strength on usual weights; all strengths in turn on the others."""
    found = [
        Export(kind, strength, 1.0, seed)
        for seed, (kind, strength) in enumerate(product(KINDS, STRENGTHS))
    ]
    for seed, ((size, kinds), strength) in enumerate(product(SIZES.items(), STRENGTHS[1:])):
        found.append(Export(kinds[seed % len(kinds)], strength, size, 20 + seed))
    return found


def false_alarms(name: str, chosen: list[Export], folder: Path) -> Iterator[tuple[Export, str]]:
    """(export, why it was refused, or nothing) of every chosen export of one model."""
    model, graphs = MODELS[name], {}
    right = writing.capture

    def once(module: Any, inputs: Any, **settings: Any) -> Any:
        """A factory's graph is not kept by the product; here it is one and the same."""
        if "graph" not in graphs:
            graphs["graph"] = right(module, inputs, **settings)
        return graphs["graph"]

    with mock.patch.object(file_proof, "saved", return_value=None):
        for number, one in enumerate(chosen):
            place = folder / str(number)
            place.mkdir()
            made = _loralib if model.architecture == LORALIB else _peft
            base, adapter, factory = made(model, one, folder, place)
            patched = mock.patch.object(writing, "capture", once if factory else right)
            try:
                with patched:
                    report = export_onnx(
                        base, [adapter], place / "out.onnx", model=factory,
                        capture_cache=folder / "captures",
                    )  # fmt: skip
            except LoraExportError as error:
                yield one, str(error)
            else:
                yield one, "" if report.passed else "was published without having passed"


def _peft(model: Model, one: Export, folder: Path, place: Path) -> tuple[Path, Path, None]:
    architecture, base = model.made(), folder / f"base-{one.size}"
    if not base.exists():
        architecture.save(torch.float32, base)
        for file in base.glob("*.safetensors"):
            sized = {n: _sized(t, one.size) for n, t in load_file(file).items()}
            save_file(sized, file, metadata={"format": "pt"})
    make_adapter(architecture, OPTIONS[one.kind], base, place / "adapter", seed=one.seed)
    file = place / "adapter" / "adapter_model.safetensors"
    save_file({n: _strong(n, t, one.strength) for n, t in load_file(file).items()}, file)
    return base, place / "adapter", None


def _loralib(_: Model, one: Export, folder: Path, place: Path) -> tuple[Path, Path, str]:
    model = small_gpt.trained(one.seed)
    state = {n: t for n, t in model.state_dict().items() if "lora_" not in n}
    base = {n: _sized(t, one.size).contiguous() for n, t in state.items()}
    save_file(base, place / "base.safetensors")
    factors = lora.lora_state_dict(model).items()
    torch.save({n: _strong(n, t, one.strength) for n, t in factors}, place / "lora.pt")
    return place / "base.safetensors", place / "lora.pt", FACTORY


def _sized(tensor: torch.Tensor, size: float) -> torch.Tensor:
    return tensor * size if tensor.ndim > 1 else tensor


def _strong(name: str, tensor: torch.Tensor, strength: float) -> torch.Tensor:
    return tensor * strength if "lora_B" in name else tensor
