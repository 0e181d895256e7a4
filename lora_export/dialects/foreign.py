"""Recognises adapters of trainers whose files are not merged yet, and refuses them by name.

A refusal that names the trainer helps more than "no factors found". The first row of TRAINERS that
fits counts. A row marked `faint` has names that other files may hold too. It only counts when no
dialect recognises the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.records import AdapterFile


@dataclass(frozen=True, slots=True)
class Trainer:
    """One foreign way of writing adapter files."""

    name: str
    """The adapter's kind, for messages."""
    mark: str
    """The names by which it is recognised, for messages."""
    fits: Callable[[AdapterFile], bool]
    """Returns whether a file is of this kind."""
    hint: str
    """What the user can do instead."""
    faint: bool = False
    """Whether other files may have these names too."""


def _names(*patterns: str) -> Callable[[AdapterFile], bool]:
    """Return a test for files in which every pattern fits some whole name."""
    compiled = [re.compile(pattern, re.DOTALL) for pattern in patterns]

    def fits(file: AdapterFile) -> bool:
        return all(any(map(one.fullmatch, file.tensors)) for one in compiled)

    return fits


# A network may have layers with some of LyCORIS's names. Only its prefix shows an adapter.
_PREFIX = r"(?:lora_(?:unet|te[123]?|transformer|prior_unet)|lycoris)_"
_COMPONENTS = r"(?:unet|transformer(?!\.h\.\d)|text_encoder(?:_[23])?|diffusion_model)"
_IN_COMPONENT = _names(rf"{_COMPONENTS}\..+\.lora_A\.weight")
_MLX_NAMES = _names(r".+\.lora_a", r".+\.lora_b")


def _of_diffusers(file: AdapterFile) -> bool:
    return "lora_adapter_metadata" in file.metadata or _IN_COMPONENT(file)


def _of_mlx(file: AdapterFile) -> bool:
    return "fine_tune_type" in file.config or _MLX_NAMES(file)


_COMFY = "ComfyUI loads it, and its Save nodes write the merged weights"
_LYCORIS = f"{_COMFY}; LyCORIS's own merge applies the scaling of LoHa and LoKr twice"
_FUSE = "load it with diffusers' load_lora_weights, then fuse_lora() and save_pretrained"

TRAINERS = (
    Trainer(
        "a kohya or LoCon LoRA",
        "*.lora_down.weight",
        _names(r".+\.lora_down\.weight", r".+\.lora_up\.weight"),
        f"sd-scripts merges it (networks/merge_lora.py and its siblings); {_COMFY}",
    ),
    Trainer("a LoHa of LyCORIS", "*.hada_w1_a", _names(r".+\.hada_w1_a"), _LYCORIS),
    Trainer("a LoKr of LyCORIS", "*.lokr_w1", _names(r".+\.lokr_w1(?:_a)?"), _LYCORIS),
    Trainer("an OFT of LyCORIS or kohya", "*.oft_blocks", _names(r".+\.oft_blocks"), _COMFY),
    Trainer(
        "a GLoRA of LyCORIS",
        "lora_*.a1.weight and lora_*.b1.weight",
        _names(rf"{_PREFIX}.+\.a1\.weight", rf"{_PREFIX}.+\.b1\.weight"),
        _COMFY,
        faint=True,
    ),
    Trainer(
        "a LoRA of an older diffusers",
        "*lora.down.weight",
        _names(r".+(?:[._]lora|\.lora_linear_layer)\.down\.weight"),
        _FUSE,
    ),
    Trainer(
        "a LoRA of diffusers or ai-toolkit",
        "*.lora_A.weight below unet., transformer., text_encoder. or diffusion_model.",
        _of_diffusers,
        f"{_FUSE}; for a language model, put PEFT's adapter_config.json beside it",
    ),
    Trainer(
        "an adapter of mlx-lm",
        "*.lora_a, or fine_tune_type in adapter_config.json",
        _of_mlx,
        "mlx_lm.fuse --model BASE --adapter-path FOLDER --save-path OUT merges it",
    ),
    Trainer(
        "a LoRA of torchtune",
        "*.lora_a.weight",
        _names(r".+\.lora_a\.weight", r".+\.lora_b\.weight"),
        "torchtune's Hugging Face checkpointer also writes adapter_model.safetensors and "
        "adapter_config.json: give the folder that holds these",
    ),
    Trainer(
        "a LoRA of NeMo or Megatron-Bridge",
        "*.adapter.linear_in.weight",
        _names(r".+\.adapter\.linear_in\.weight"),
        "Megatron-Bridge's export_adapter.py writes it as a PEFT folder, which can be merged",
    ),
    Trainer(
        "a LoRA of DeepSpeed-Chat",
        "*.lora_right_weight",
        _names(r".+\.lora_right_weight"),
        "convert_lora_to_linear_layer(model) of DeepSpeed-Chat merges it; save that model",
    ),
    Trainer(
        "a LoRA of AdapterHub",
        "*.loras.NAME.lora_A",
        _names(r".+\.loras\.[^.]+\.lora_A"),
        "model.merge_adapter(NAME) of the adapters library merges it; save that model",
    ),
    Trainer(
        "a LoRA of minLoRA, a parametrization",
        "*.parametrizations.weight.0.lora_A",
        _names(r"(?:.+\.)?parametrizations\.[^.]+\.\d+\.lora_A"),
        "merge_lora(model) of minLoRA merges it; save that model's state dict",
    ),
    Trainer(
        "a DoRA without PEFT's adapter_config.json",
        "*.dora_scale or *.lora_magnitude_vector",
        _names(r".+\.(?:dora_scale|lora_magnitude_vector(?:\.weight)?)"),
        f"for PEFT's, put its adapter_config.json beside it; for other trainers', {_COMFY}",
    ),
    Trainer(
        "an adapter of LyCORIS with full differences or norms",
        "lora_*.diff, .diff_b, .w_norm or .on_input",
        _names(rf"{_PREFIX}.+\.(?:diff|diff_b|w_norm|on_input)"),
        _COMFY,
        faint=True,
    ),
    Trainer(
        "a textual inversion",
        "emb_params, string_to_param or bundle_emb",
        _names(r"emb_params|(?:.+\.)?string_to_param(?:\..+)?|bundle_emb\..+"),
        "it holds embeddings of new words, no update of weights",
        faint=True,
    ),
)


def trainer_of(file: AdapterFile, *, faint: bool) -> Trainer | None:
    """Return the first row of TRAINERS that fits; faint rows count only if `faint`."""
    rows = (row for row in TRAINERS if faint or not row.faint)
    return next((row for row in rows if row.fits(file)), None)


def not_merged(file: AdapterFile, trainer: Trainer) -> InputError:
    """Return the refusal of a file that `trainer` fits."""
    return InputError(
        f"this is {trainer.name} ({trainer.mark}), which is not merged yet",
        where=str(file.path),
        hint=trainer.hint,
        cause="input/other-trainer",
    )
