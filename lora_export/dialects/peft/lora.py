"""Reads LORA: A and B by module, the scaling from the config (PEFT 0.21.2, tuners.lora)."""

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
from lora_export.dialects.peft.module_factors import OTHER_CONFIG, place
from lora_export.dialects.peft.patterns import Patterns
from lora_export.dialects.peft.target_parameters import Targets
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import Problem, Terms, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import ScalingRule, TensorRef

_ROLES = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "M", "lora_B.bias": "bias",
}  # fmt: skip

_BARE = "if these are loralib's factors, move the file to a folder of its own and give an alpha"


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The members of a config that give every module its scaling."""

    rank: int
    alpha: float
    ranks: Patterns[int]
    """rank_pattern; the first pattern that fits a module overrides `rank`."""
    alphas: Patterns[float]
    """alpha_pattern; the first pattern that fits a module overrides `alpha`."""
    rule: ScalingRule
    fan_in_fan_out: bool | None
    version: str
    """The version of PEFT that wrote the file, or ""."""
    variant: str
    """See lora_refusals.variant_of."""

    @classmethod
    def of(cls, config: PeftConfig) -> _Numbers:
        """Read the members, with the defaults of LoraConfig."""
        rule: ScalingRule = "alpha / sqrt(rank)" if config.flag("use_rslora") else "alpha / rank"
        turned = config.members.get("fan_in_fan_out")
        return cls(
            config.whole("r", 8),
            config.number("lora_alpha", 8),
            Patterns(config.ranks()),
            Patterns(config.alphas()),
            rule,
            turned if isinstance(turned, bool) else None,
            config.text("peft_version"),
            variant_of(config),
        )

    def terms(self, module: str, tuner: str) -> Terms:
        """Return what the config states for a module; the patterns are matched with its name."""
        return Terms(
            tuner=tuner,
            alpha=self.alphas.first_fit(module, self.alpha),
            rank=self.ranks.first_fit(module, self.rank),
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
            updates += [targets.settle(update, numbers.terms) for update in made]
        else:
            updates.append(_attention(numbers, module, stems, outer))
    return updates, problems


def _updates(numbers: _Numbers, module: str, stems: Mapping[str, TensorRef]) -> Iterator[Update]:
    """Yield the update of the weight, and one of the bias if B has a bias."""
    factors = {_ROLES[stem]: ref for stem, ref in stems.items()}
    bias = factors.pop("bias", None)
    terms = numbers.terms(module, _tuner(stems))
    yield Update(module, factors, terms=terms)
    if bias is not None:
        yield Update(module, {"bias": bias}, "bias", replace(terms, tuner="lora_bias"))


def _attention(
    numbers: _Numbers, module: str, stems: Mapping[str, TensorRef], outer: str
) -> Update:
    """Return the update of an attention's projection; rank and alpha are the attention's own."""
    factors = {_ROLES[stem]: ref for stem, ref in stems.items()}
    if module == outer:
        terms = numbers.terms(outer, "lora_attention_in")
        return Update(module, factors, "in_proj_weight", terms)
    return Update(base_name(module), factors, terms=numbers.terms(outer, "lora_attention_out"))


def _is_bare(stem: str, key: str) -> bool:
    """Return whether a key names a layer's factor itself instead of its weight.

    In PEFT A and B of a layer are modules with a weight. Those of an embedding are parameters.
    """
    return stem in ("lora_A", "lora_B") and not key.endswith(".weight")


def _tuner(stems: Mapping[str, TensorRef]) -> str:
    embedding = "_embedding" if "lora_embedding_A" in stems else ""
    return f"{'dora' if 'lora_magnitude_vector' in stems else 'lora'}{embedding}"


def _contradictions(
    config: PeftConfig, module: str, stems: Mapping[str, TensorRef]
) -> list[Problem]:
    """Return why the factors of a module fit neither each other nor the config."""
    where = place(config, module)
    if unknown := stems.keys() - _ROLES.keys():
        message = f"{min(unknown)} is no factor of LoRA"
        return [
            Problem(
                message,
                where,
                "save the adapter with PEFT's save_pretrained",
                cause="input/factors",
            )
        ]
    roles = [_ROLES[stem] for stem in stems]
    if missing := {"A", "B"} - set(roles):
        hint = "a factor without its partner cannot be merged: save the adapter again"
        return [
            Problem(
                f"lora_{min(missing)} is missing; its partner is there",
                where,
                hint,
                cause="input/factors",
            )
        ]
    if len(set(roles)) < len(roles):
        hint = "save the adapter again: a module has only one of both"
        return [
            Problem(
                "holds factors of a linear layer and of an embedding",
                where,
                hint,
                cause="input/factors",
            )
        ]
    if bare := [ref for stem, ref in stems.items() if _is_bare(stem, ref.spec.name)]:
        message = "does not end in .weight, so PEFT ignores it"
        return [
            Problem(
                message, f"{bare[0].file}: {bare[0].spec.name}", _BARE, cause="input/adapter-keys"
            )
        ]
    if variant_of(config) and any(len(ref.spec.shape) != 2 for ref in stems.values()):
        message = f"PEFT has no layer for init_lora_weights = {variant_of(config)!r} here"
        return [Problem(message, where, OTHER_CONFIG, cause="input/peft-option")]
    return [
        Problem(
            f"{flag} is {config.flag(flag)}, but the file {has} {what}",
            where,
            OTHER_CONFIG,
            cause="input/other-config",
        )
        for flag, role, what in _FLAGGED
        if config.flag(flag) != (role in roles)
        for has in ("holds" if role in roles else "lacks",)
    ]


_FLAGGED = (("use_dora", "M", "a magnitude"), ("lora_bias", "bias", "a bias of lora_B"))
"""Flags of a config that give every module one more factor: (flag, role, what it is)."""


TUNER = Tuner("LORA", frozenset(stem for stem in _ROLES if "." not in stem), _read, refusals)
