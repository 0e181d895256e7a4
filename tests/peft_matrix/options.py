"""What an adapter of PEFT may be: a table of options, each for the architectures it makes sense on.

Ranks and alphas are chosen so that no scaling is a power of two: a scaling applied at the wrong
moment then changes bits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peft

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from peft_matrix.architectures import Architecture

_ALL_TEXT = ("bert", "roberta", "distilbert", "albert", "gpt2", "gpt-neox", "llama", "llama tied",
             "qwen3", "gemma3", "mixtral", "t5", "bert encoder")  # fmt: skip
EVERYWHERE = (*_ALL_TEXT, "vit", "clip", "whisper", "wav2vec2", "llava")
_CLASSIFIERS = ("bert", "roberta", "distilbert", "albert", "vit")
_SEPARATE_TABLES = ("llama", "bert", "albert", "clip")
_BIASED = ("bert", "gpt2", "vit")
# Where bits and behaviour of PEFT differ most from one another: Linear, Conv1D, grouped queries.
_FEW = ("bert", "gpt2", "llama")


@dataclass(frozen=True)
class Option:
    """One kind of adapter.

    config: what PEFT is asked for. on: the architectures. half: the adapter file is cast to the
    base's dtype after training, as many training programs do. allocated: AdaLoRA has shared out its
    ranks, and the file holds fewer than it began with. of_transformers_4: made when each expert was
    a module; PEFT converts it as it loads. edits: what is changed in the saved
    adapter_config.json. peft_is_wrong: why PEFT's own merge does not do what its unmerged model
    does, so that the oracle is the unmerged model alone.
    """

    config: Callable[[Architecture], Any]
    on: tuple[str, ...]
    safetensors: bool = True
    half: bool = False
    allocated: bool = False
    of_transformers_4: bool = False
    edits: Mapping[str, Any] | None = None
    peft_is_wrong: str = ""

    def edit(self, folder: Path) -> None:
        """Change the adapter's configuration as `edits` says."""
        if self.edits:
            path = folder / "adapter_config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps({**config, **self.edits}))


def _settings(a: Architecture, **changes: Any) -> dict[str, Any]:
    return {"target_modules": [*a.attention], "task_type": a.task, **changes}


def _lora(**changes: Any) -> Callable[[Architecture], Any]:
    """LoRA on the attention; a changed value that is a function is asked with the architecture."""

    def config(a: Architecture) -> Any:
        given = {name: value(a) if callable(value) else value for name, value in changes.items()}
        low = {"r": 8, "lora_alpha": 20, **a.settings}
        return peft.LoraConfig(**{**low, **_settings(a), **given})

    return config


def _tuner(name: str, **changes: Any) -> Callable[[Architecture], Any]:
    def config(a: Architecture) -> Any:
        given = {key: value(a) if callable(value) else value for key, value in changes.items()}
        return getattr(peft, name)(**_settings(a, **given))

    return config


def _with(*fields: str) -> Callable[[Architecture], list[str]]:
    """The attention, and the modules that `fields` of the architecture name."""

    def modules(a: Architecture) -> list[str]:
        found = [*a.attention]
        for field in fields:
            value = getattr(a, field)
            found += [value] if isinstance(value, str) else value
        return [name for name in found if name]

    return modules


def _rank_pattern(a: Architecture) -> dict[str, int]:
    # One key matches in the first layer alone; the second one comes too late there.
    return {rf".*\.0\..*{a.attention[0]}": 3, a.attention[0]: 5}


def _rows(a: Architecture) -> list[int]:
    """Three tokens that the inputs hold: others would change no output."""
    return sorted({*a.inputs()["input_ids"].flatten().tolist()})[2:5]


def _adalora(a: Architecture) -> Any:
    sizes = {"init_r": 6, "target_r": 4, "total_step": 10, "lora_alpha": 13}
    return peft.AdaLoraConfig(**_settings(a), **sizes, **a.settings)


_COUPLED = "its merge adds the update to both ends of a tie"
_TUNED = ("bert", "gpt2", "llama")
_CROSSED = ("bert", "llama", "whisper")  # LoHa and LoKr know no Conv1D of transformers

OPTIONS: dict[str, Option] = {
    "plain": Option(_lora(), EVERYWHERE),
    # PEFT looks for the table of tokens here, which a model of sounds has not.
    "all-linear": Option(
        _lora(target_modules="all-linear"), tuple(a for a in EVERYWHERE if a != "wav2vec2")
    ),
    "rslora": Option(_lora(use_rslora=True, r=6, lora_alpha=5), EVERYWHERE),
    "dora": Option(_lora(use_dora=True), EVERYWHERE),
    "dora all-linear rslora": Option(
        _lora(use_dora=True, target_modules="all-linear", use_rslora=True, r=5), _FEW
    ),
    "patterns": Option(
        _lora(
            rank_pattern=_rank_pattern,
            alpha_pattern=lambda a: {a.attention[-1]: 11, rf".*\.1\..*{a.attention[0]}": 7},
        ),
        _FEW,
    ),
    "patterns rslora": Option(
        _lora(rank_pattern=_rank_pattern, use_rslora=True), ("bert", "qwen3")
    ),
    "bias lora_only": Option(_lora(bias="lora_only"), _BIASED),
    "bias all": Option(_lora(bias="all"), _BIASED),
    "lora_bias": Option(_lora(lora_bias=True), (*_BIASED, "roberta")),
    "trained head": Option(_lora(modules_to_save=lambda a: [a.head]), _CLASSIFIERS),
    "trained table and head": Option(
        _lora(modules_to_save=lambda a: [a.table, a.output_head]), ("llama", "gpt-neox")
    ),
    "trained head of a tie": Option(
        _lora(modules_to_save=lambda a: [a.output_head]), ("llama tied", "gpt2")
    ),
    "trained table of a tie": Option(
        _lora(modules_to_save=lambda a: [a.table]), ("llama tied", "gpt2")
    ),
    "trained norms": Option(
        _lora(modules_to_save=["post_attention_layernorm"]), ("llama", "gpt-neox")
    ),
    "table": Option(_lora(target_modules=_with("table")), _SEPARATE_TABLES),
    "table dora": Option(
        _lora(target_modules=_with("table"), use_dora=True), ("llama", "bert")
    ),
    "output head": Option(_lora(target_modules=_with("output_head")), ("llama", "gpt-neox")),
    "table and output head": Option(
        _lora(target_modules=_with("table", "output_head")), ("llama", "gpt-neox")
    ),
    "table of a tie": Option(
        # T5's shared table is called by nobody in transformers 5: an adapter of it does nothing.
        _lora(target_modules=_with("table")), ("llama tied", "gpt2", "whisper", "qwen3"),
        peft_is_wrong=_COUPLED,
    ),
    "head of a tie": Option(
        _lora(target_modules=_with("output_head")), ("llama tied", "gpt2", "gemma3"),
        peft_is_wrong=_COUPLED,
    ),
    "both ends of a tie": Option(
        _lora(target_modules=_with("table", "output_head")), ("llama tied", "gpt2"),
        peft_is_wrong=_COUPLED,
    ),
    "token rows": Option(
        _lora(trainable_token_indices=lambda a: {a.table: _rows(a)}), _SEPARATE_TABLES
    ),
    "token rows of a tie": Option(
        _lora(trainable_token_indices=lambda a: {a.table: _rows(a)}), ("llama tied", "gpt2")
    ),
    "experts": Option(
        _lora(target_parameters=["experts.gate_up_proj", "experts.down_proj"]), ("mixtral",)
    ),
    "one parameter of the experts": Option(
        _lora(target_modules=[], target_parameters=["experts.down_proj"]), ("mixtral",)
    ),
    "router": Option(_lora(target_parameters=["mlp.gate.weight"]), ("mixtral",)),
    "experts of transformers 4": Option(
        _lora(target_modules=["q_proj", "w1", "w2", "w3"], task_type=None), ("mixtral",),
        of_transformers_4=True,
    ),
    "one layer": Option(_lora(layers_to_transform=[1]), ("bert", "gpt2", "llama")),
    "excluded": Option(
        _lora(target_modules="all-linear", exclude_modules=lambda a: [a.attention[-1]]), _FEW
    ),
    "regex": Option(
        _lora(target_modules=lambda a: rf".*\.(0|1)\..*({'|'.join(a.attention)})"), _FEW
    ),
    "bin": Option(_lora(), (*_FEW, "mixtral"), safetensors=False),
    "half": Option(_lora(), (*_FEW, "whisper"), half=True),
    "half dora": Option(_lora(use_dora=True), _FEW, half=True),
    "fan_in_fan_out wrong": Option(
        _lora(target_modules="all-linear"), ("gpt2",), edits={"fan_in_fan_out": False}
    ),
    "fan_in_fan_out for nothing": Option(
        _lora(target_modules="all-linear"), ("bert", "llama"), edits={"fan_in_fan_out": True}
    ),
    "conv": Option(_lora(target_modules=_with("conv")), ("vit", "clip", "wav2vec2", "llava")),
    "conv dora": Option(
        _lora(target_modules=_with("conv"), use_dora=True), ("vit", "wav2vec2")
    ),
    "everything": Option(
        _lora(
            target_modules=_with("table"), use_dora=True, use_rslora=True, bias="lora_only",
            rank_pattern=_rank_pattern, modules_to_save=lambda a: [a.head or a.output_head],
        ),
        ("bert", "llama"),
    ),
    "adalora": Option(_adalora, _TUNED),
    # In the base's dtype, as PEFT rounds the factors to it when it loads fewer ranks than init_r.
    "adalora shared out": Option(_adalora, _TUNED, allocated=True, half=True),
    "token rows alone": Option(
        _tuner(
            "TrainableTokensConfig", target_modules=lambda a: [a.table], token_indices=_rows
        ),
        ("llama", "llama tied", "bert"),
    ),
    "loha": Option(_tuner("LoHaConfig", r=4, alpha=7), _CROSSED),
    "loha conv": Option(
        _tuner("LoHaConfig", r=4, alpha=7, target_modules=_with("conv")), ("vit", "wav2vec2")
    ),
    "loha conv cp": Option(
        _tuner("LoHaConfig", r=4, alpha=7, target_modules=_with("conv"), use_effective_conv2d=True),
        ("vit", "wav2vec2"),
    ),
    "lokr": Option(_tuner("LoKrConfig", r=4, alpha=7), _CROSSED),
    "lokr both": Option(
        _tuner("LoKrConfig", r=2, alpha=7, decompose_both=True, decompose_factor=4), _CROSSED
    ),
    "lokr conv": Option(
        _tuner("LoKrConfig", r=4, alpha=7, target_modules=_with("conv")), ("vit", "wav2vec2")
    ),
    "lokr conv tucker": Option(
        _tuner("LoKrConfig", r=2, alpha=7, target_modules=_with("conv"), use_effective_conv2d=True),
        ("vit", "wav2vec2"),
    ),
    "vera": Option(_tuner("VeraConfig", r=6), _TUNED),
    "ia3": Option(
        _tuner(
            "IA3Config",
            target_modules=_with("feed_forward"),
            feedforward_modules=lambda a: [*a.feed_forward],
        ),
        (*_TUNED, "t5"),
    ),
    "ia3 conv": Option(
        _tuner("IA3Config", target_modules=_with("conv"), feedforward_modules=lambda a: [a.conv]),
        ("vit",),
    ),
}  # fmt: skip
