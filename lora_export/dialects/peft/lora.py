"""LORA: A and B by module, scaling from the configuration (PEFT 0.21.2, tuners.lora)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.attention import (
    attention_of,
    attention_problems,
    attentions,
    base_name,
)
from lora_export.dialects.peft.lora_refusals import refusals, variant_of
from lora_export.dialects.peft.patterns import Pattern, first_fit
from lora_export.dialects.peft.target_parameters import Targets
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import Problem, Said, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import ScalingRule, TensorRef

_ROLES = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "M", "lora_B.bias": "bias",
}  # fmt: skip

_BARE = "factors of loralib? they need an alpha of their own, in a file outside of this folder"


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What the configuration says of every module."""

    rank: int
    alpha: float
    ranks: Sequence[tuple[Pattern, int]]
    alphas: Sequence[tuple[Pattern, float]]
    rule: ScalingRule
    fan_in_fan_out: bool | None
    version: str
    variant: str

    @classmethod
    def of(cls, config: PeftConfig) -> _Numbers:
        rule: ScalingRule = "alpha / sqrt(rank)" if config.flag("use_rslora") else "alpha / rank"
        turned = config.members.get("fan_in_fan_out")
        return cls(
            config.whole("r", 8),
            config.number("lora_alpha", 8),
            config.ranks(),
            config.alphas(),
            rule,
            turned if isinstance(turned, bool) else None,
            config.text("peft_version"),
            variant_of(config),
        )

    def said(self, module: str, tuner: str) -> Said:
        return Said(
            tuner=tuner,
            alpha=first_fit(self.alphas, module, self.alpha),
            rank=first_fit(self.ranks, module, self.rank),
            rule=self.rule,
            fan_in_fan_out=self.fan_in_fan_out,
            source=ADAPTER_CONFIG,
            version=self.version,
            rounds_first=self.variant == "mica",
        )


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    numbers = _Numbers.of(config)
    found = attentions(modules)
    targets = Targets.of(config)
    updates: list[Update] = []
    problems = attention_problems(config, found) if found else []
    for module, stems in modules.items():
        if wrong := _contradictions(config, module, stems):
            problems += wrong
            continue
        outer = attention_of(module, found)
        if outer is None:
            made = _updates(numbers, module, stems)
            updates += [targets.settle(update, numbers.said) for update in made]
        else:
            updates.append(_attention(numbers, module, stems, outer))
    return updates, problems


def _updates(numbers: _Numbers, module: str, stems: Mapping[str, TensorRef]) -> Iterator[Update]:
    """The weight's, and the bias's where B has one."""
    factors = {_ROLES[stem]: ref for stem, ref in stems.items()}
    bias = factors.pop("bias", None)
    said = numbers.said(module, _tuner(stems))
    yield Update(module, factors, said=said)
    if bias is not None:
        yield Update(module, {"bias": bias}, "bias", replace(said, tuner="lora_bias"))


def _attention(
    numbers: _Numbers, module: str, stems: Mapping[str, TensorRef], outer: str
) -> Update:
    """The two projections have the numbers of the attention, by its name."""
    factors = {_ROLES[stem]: ref for stem, ref in stems.items()}
    if module == outer:
        said = numbers.said(outer, "lora_attention_in")
        return Update(module, factors, "in_proj_weight", said)
    return Update(base_name(module), factors, said=numbers.said(outer, "lora_attention_out"))


def _is_bare(stem: str, key: str) -> bool:
    """A and B of a layer are modules of PEFT; those of an embedding are parameters."""
    return stem in ("lora_A", "lora_B") and not key.endswith(".weight")


def _tuner(stems: Mapping[str, TensorRef]) -> str:
    embedding = "_embedding" if "lora_embedding_A" in stems else ""
    return f"{'dora' if 'lora_magnitude_vector' in stems else 'lora'}{embedding}"


def _contradictions(
    config: PeftConfig, module: str, stems: Mapping[str, TensorRef]
) -> list[Problem]:
    """A factor without its partner, or one that the configuration does not speak of."""
    where = f"{config.path.parent}: {module or '(root module)'}"
    if unknown := stems.keys() - _ROLES.keys():
        message = f"{min(unknown)} is no factor of LoRA"
        return [Problem(message, where, "was the file written by another tool?")]
    roles = [_ROLES[stem] for stem in stems]
    if missing := {"A", "B"} - set(roles):
        hint = "a factor without its partner cannot be merged: save the adapter again"
        return [Problem(f"lora_{min(missing)} is missing; its partner is there", where, hint)]
    if len(set(roles)) < len(roles):
        hint = "a module is an embedding or not: was the file put together of two?"
        return [Problem("holds factors of a linear layer and of an embedding", where, hint)]
    if bare := [ref for stem, ref in stems.items() if _is_bare(stem, ref.spec.name)]:
        message = "does not end in .weight, so PEFT ignores it"
        return [Problem(message, f"{bare[0].file}: {bare[0].spec.name}", _BARE)]
    if variant_of(config) and any(len(ref.spec.shape) != 2 for ref in stems.values()):  # noqa: PLR2004
        message = f"PEFT has no layer for init_lora_weights = {variant_of(config)!r} here"
        return [Problem(message, where, "was it trained with this configuration?")]
    return [
        Problem(f"{flag} is {config.flag(flag)}, but the file {has} {what}", where, _OTHER)
        for flag, role, what in _FLAGGED
        if config.flag(flag) != (role in roles)
        for has in ("holds" if role in roles else "lacks",)
    ]


_FLAGGED = (("use_dora", "M", "a magnitude"), ("lora_bias", "bias", "a bias of lora_B"))
_OTHER = "configuration and tensors belong to different adapters"


TUNER = Tuner("LORA", frozenset(stem for stem in _ROLES if "." not in stem), _read, refusals)
