"""The fields of adapter_config.json that PEFT 0.21.2 knows, so that newer ones are not overlooked.

Written down from its configuration classes; a test holds them against those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig

_COMMON = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
})  # fmt: skip
_LORA = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "init_lora_weights",
    "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "monteclora_config", "qalora_group_size", "r",
    "rank_pattern", "runtime_config", "target_modules", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    "velora_config",
})  # fmt: skip
_LYCORIS = frozenset({
    "alpha", "alpha_pattern", "exclude_modules", "init_weights", "layers_pattern",
    "layers_to_transform", "module_dropout", "modules_to_save", "r", "rank_dropout",
    "rank_pattern", "target_modules", "use_effective_conv2d",
})  # fmt: skip

FIELDS: Mapping[str, frozenset[str]] = {
    "LORA": _COMMON | _LORA,
    "ADALORA": _COMMON | _LORA | {
        "beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit",
        "total_step",
    },
    "LOHA": _COMMON | _LYCORIS,
    "LOKR": _COMMON | _LYCORIS | {"decompose_both", "decompose_factor", "rank_dropout_scale"},
    "VERA": _COMMON | {
        "bias", "d_initial", "fan_in_fan_out", "init_weights", "layers_pattern",
        "layers_to_transform", "modules_to_save", "projection_prng_key", "r", "save_projection",
        "target_modules", "vera_dropout",
    },
    "IA3": _COMMON | {
        "exclude_modules", "fan_in_fan_out", "feedforward_modules", "init_ia3_weights",
        "modules_to_save", "target_modules",
    },
}  # fmt: skip
"""By peft_type. What of these changes the merge, its tuner reads or refuses."""


def unknown_fields(config: PeftConfig) -> list[str]:
    """A note for each field that says something and is not known."""
    known = FIELDS.get(config.peft_type)
    if known is None:
        return []
    return [
        f"adapter_config.json says {_plain(key):.80} = {value!r:.80}, which this version does not "
        "know"
        for key, value in config.members.items()
        if key not in known and not _says_nothing(value)
    ]


def _plain(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _says_nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
