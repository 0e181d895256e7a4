"""Small models adapted by PEFT's tuners beside LoRA, and what PEFT's own merge makes of them.

The oracle of their exactness tests: PeftModel.from_pretrained(...).merge_and_unload() of PEFT.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from peft import PeftConfig

    Maker = Callable[[ModuleType], PeftConfig]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LINEAR = ("plain", "square", "large")
INPUTS = ("x=float32[batch,400]",)
TURNED = ("turned", "turned_square")
CONV2D = ("point", "kernel", "oblong")
CONV1D = ("line", "line_point")


class Layers(torch.nn.Module):
    """One layer of each sort that some tuner adapts; all are called, so that branches are too."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.plain = torch.nn.Linear(40, 72)
        self.square = torch.nn.Linear(48, 48, bias=False)
        self.large = torch.nn.Linear(192, 320)
        self.turned = Conv1D(56, 32)
        self.turned_square = Conv1D(24, 24)
        self.point = torch.nn.Conv2d(6, 10, 1)
        self.kernel = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.oblong = torch.nn.Conv2d(6, 12, (1, 3))
        self.grouped = torch.nn.Conv2d(8, 12, 3, groups=2)
        self.volume = torch.nn.Conv3d(4, 6, 2)
        self.line = torch.nn.Conv1d(24, 32, 3)
        self.line_point = torch.nn.Conv1d(6, 8, 1)
        self.norm = torch.nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Every layer on a slice of `x`, which has 400 columns."""
        parts = [
            self.norm(x[:, :5]),
            *(getattr(self, n)(x[:, : getattr(self, n).in_features]) for n in LINEAR),
            self.turned(x[:, :32]),
            self.turned_square(x[:, :24]),
            *(self.image(getattr(self, n), x) for n in (*CONV2D, "grouped")),
            self.volume(x[:, : 4 * 27].reshape(-1, 4, 3, 3, 3)),
            *(self.signal(getattr(self, n), x) for n in CONV1D),
        ]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @staticmethod
    def signal(layer: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
        """A convolution of five steps."""
        return layer(x[:, : layer.in_channels * 5].reshape(-1, layer.in_channels, 5))

    @staticmethod
    def image(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        """A convolution of a picture of five times five."""
        return layer(x[:, : layer.in_channels * 25].reshape(-1, layer.in_channels, 5, 5))


def build() -> torch.nn.Module:
    """The factory that `--model` is given."""
    return Layers().eval()


def _adalora(*names: str, pruned: bool = False, alpha: float = 7) -> Maker:
    return lambda peft: peft.AdaLoraConfig(
        target_modules=list(names),
        init_r=6,
        lora_alpha=alpha,
        total_step=10,
        rank_pattern={f"{name}.lora_E.default": _mask(name) for name in names} if pruned else None,
    )


def _mask(name: str) -> list[bool]:
    """Which of six singular values are left: four, all, or none."""
    if name == "plain":
        return [False] * 6
    return [True] * 6 if name == "square" else [True, False, True, True, False, True]


CONFIGS: dict[str, Maker] = {
    "adalora": _adalora(*LINEAR, *CONV2D),
    "adalora turned": _adalora(*TURNED),
    "adalora pruned": _adalora(*LINEAR, *CONV2D, pruned=True),
    "adalora without alpha": _adalora(*LINEAR, pruned=True, alpha=0),
    "loha": lambda peft: peft.LoHaConfig(
        target_modules=[*LINEAR, *CONV2D, *CONV1D, "grouped"],
        r=3,
        alpha=7,
        rank_pattern={"square": 5},
        alpha_pattern={"l.*e": 2.5},
    ),
    "loha effective": lambda peft: peft.LoHaConfig(
        target_modules=[*LINEAR, *CONV2D, *CONV1D, "grouped"],
        r=6,
        alpha=7,
        use_effective_conv2d=True,
    ),
    "lokr": lambda peft: peft.LoKrConfig(
        target_modules=[*LINEAR, *CONV2D, *CONV1D, "grouped"],
        r=2,
        alpha=7,
        rank_pattern={"square": 3},
        alpha_pattern={"l.*e": 2.5},
    ),
    "lokr whole": lambda peft: peft.LoKrConfig(
        target_modules=[*LINEAR, *CONV2D, *CONV1D, "grouped"], r=64, alpha=7
    ),
    "lokr both": lambda peft: peft.LoKrConfig(
        target_modules=[*LINEAR, *CONV2D, *CONV1D],
        r=1,
        alpha=0.7,
        decompose_both=True,
        decompose_factor=4,
    ),
    "lokr effective": lambda peft: peft.LoKrConfig(
        target_modules=["large", *CONV2D, "grouped"],
        r=1,
        alpha=7,
        use_effective_conv2d=True,
        decompose_factor=2,
    ),
    "lokr effective line": lambda peft: peft.LoKrConfig(
        target_modules=["line_point", "line"], r=2, alpha=7, use_effective_conv2d=True
    ),
    "vera": lambda peft: peft.VeraConfig(target_modules=list(LINEAR), r=5),
    "vera turned": lambda peft: peft.VeraConfig(target_modules=list(TURNED), r=5),
    "vera drawn": lambda peft: peft.VeraConfig(
        target_modules=list(LINEAR), r=5, save_projection=False, projection_prng_key=(1 << 40) + 7
    ),
    "vera drawn turned": lambda peft: peft.VeraConfig(
        target_modules=[*TURNED], r=5, save_projection=False, projection_prng_key=3
    ),
    "ia3": lambda peft: peft.IA3Config(
        target_modules=[*LINEAR, *CONV2D, "grouped", "volume"], feedforward_modules=[]
    ),
    "ia3 turned": lambda peft: peft.IA3Config(target_modules=[*TURNED], feedforward_modules=[]),
    "ia3 feedforward": lambda peft: peft.IA3Config(
        target_modules=[*LINEAR, *CONV2D, "grouped", "volume"],
        feedforward_modules=[*LINEAR, *CONV2D, "grouped", "volume"],
    ),
    "ia3 feedforward turned": lambda peft: peft.IA3Config(
        target_modules=[*TURNED], feedforward_modules=[*TURNED]
    ),
}


def configuration(case: str) -> PeftConfig:
    """Return PEFT's configuration of the case."""
    import peft

    return CONFIGS[case](peft)


def base_model(dtype: torch.dtype) -> Layers:
    """Random weights and biases, in half precision where asked."""
    torch.manual_seed(0)
    model = Layers()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.05
    return model.to(dtype).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of what it corrects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def save_case(case: str | PeftConfig, dtype: torch.dtype, folder: Path) -> tuple[Path, Path]:
    """(base.safetensors, adapter folder) as PEFT writes them, with factors drawn at random."""
    import peft

    save_file(base_model(dtype).state_dict(), folder / "base.safetensors")
    config = configuration(case) if isinstance(case, str) else case
    adapted = peft.get_peft_model(base_model(dtype), config)
    torch.manual_seed(1)
    for key, parameter in adapted.named_parameters():
        if any(mark in key for mark in ("lora_", "hada_", "lokr_", "vera_lambda", "ia3_l")):
            size = 0.3 if "ia3" not in key else 0.1
            parameter.data = torch.randn(parameter.shape) * size + (1.0 if "ia3" in key else 0.0)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base.safetensors", folder / "adapter"


@quiet()
def merged_by_peft(base: Path, adapter: Path, *, safe: bool = False) -> dict[str, torch.Tensor]:
    """What PEFT makes of the two; every key of the adapter is one that it knows."""
    import peft

    stored = load_file(base)
    model = Layers()
    model.load_state_dict(stored, assign=True)
    loaded = peft.PeftModel.from_pretrained(model, adapter)
    known = peft.get_peft_model_state_dict(loaded)
    assert known.keys() == load_file(adapter / "adapter_model.safetensors").keys()
    merged = loaded.merge_and_unload(safe_merge=safe)
    state: dict[str, torch.Tensor] = merged.state_dict()
    return state


def edit_config(adapter: Path, **members: object) -> None:
    """Change adapter_config.json; None takes a member away."""
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), **members}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
