"""LORA: A and B by module, scaling from the configuration (PEFT 0.21.2, tuners.lora)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.config import CONFIG_NAME
from lora_export.dialects.peft.parameters import Targets
from lora_export.dialects.peft.patterns import first_fit
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import Problem, Said, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import ScalingRule, TensorRef

_ROLES = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "M", "lora_B.bias": "bias",
}  # fmt: skip

# They start from another base than the one on disk, and are right only on that.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOT_MERGEABLE = {
    "alora_invocation_tokens": "an activated LoRA works from the invocation tokens on only",
    "arrow_config": "Arrow chooses among its adapters for every token",
    "use_qalora": "QALoRA pools the input before A",
}


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    ranks, alphas = config.ranks(), config.alphas()
    rank, alpha = config.whole("r", 8), config.number("lora_alpha", 8)
    rule: ScalingRule = "alpha / sqrt(rank)" if config.flag("use_rslora") else "alpha / rank"
    hint = config.members.get("fan_in_fan_out")
    version = config.text("peft_version")
    targets = Targets.of(config)
    updates, problems = [], []

    def saying(name: str, tuner: str) -> Said:
        return Said(
            tuner=tuner,
            alpha=first_fit(alphas, name, alpha),
            rank=first_fit(ranks, name, rank),
            rule=rule,
            fan_in_fan_out=hint if isinstance(hint, bool) else None,
            source=CONFIG_NAME,
            version=version,
        )

    for module, stems in modules.items():
        factors = {_ROLES[stem]: ref for stem, ref in stems.items()}
        problem = _incomplete(config, module, factors, stems)
        if problem:
            problems.append(problem)
            continue
        update = Update(module, factors, said=saying(module, _tuner(stems)))
        updates.append(targets.settle(update, saying))
    return updates, problems


def _tuner(stems: Mapping[str, TensorRef]) -> str:
    embedding = "_embedding" if "lora_embedding_A" in stems else ""
    return f"{'dora' if 'lora_magnitude_vector' in stems else 'lora'}{embedding}"


def _incomplete(
    config: PeftConfig,
    module: str,
    factors: Mapping[str, TensorRef],
    stems: Mapping[str, TensorRef],
) -> Problem | None:
    where = f"{config.path.parent}: {module or '(root module)'}"
    if missing := {"A", "B"} - factors.keys():
        role = min(missing)
        hint = "a factor without its partner cannot be merged: save the adapter again"
        return Problem(f"lora_{role} is missing; its partner is there", where, hint)
    if config.flag("use_dora") != ("lora_magnitude_vector" in stems):
        has = "holds" if "lora_magnitude_vector" in stems else "lacks"
        message = f"use_dora is {config.flag('use_dora')}, but the file {has} the magnitude"
        return Problem(message, where, "configuration and tensors belong to different adapters")
    return None


def _refusals(config: PeftConfig) -> list[Problem]:
    where = str(config.path)
    problems = [
        Problem(f"{key}: {why}, so there is no merged weight", where, "serve it with PEFT")
        for key, why in _NOT_MERGEABLE.items()
        if config.members.get(key)
    ]
    start = config.members.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        message = f"init_lora_weights = {start!r:.80}: the adapter is right only on the base that "
        hint = (
            "convert it in training with save_pretrained(path_initial_model_for_weight_conversion="
            "...), or name that changed base here and set init_lora_weights to true"
        )
        problems.append(Problem(f"{message}this start has changed", where, hint))
    return problems


TUNER = Tuner(
    "LORA",
    frozenset(stem for stem in _ROLES if "." not in stem),
    _read,
    _refusals,
)
