"""The fields of adapter_config.json that PEFT 0.21.2 knows; the user is warned of any other.

The lists are copies of PEFT's config classes, and a test compares them.
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
"""The fields by peft_type. A tuner reads or refuses every one that changes the merge."""


def unknown_fields(config: PeftConfig) -> list[str]:
    """Return a doubt about each field that is set and not known."""
    known = FIELDS.get(config.peft_type)
    if known is None:
        return []
    return [
        f"adapter_config.json has {_plain(key):.80} = {value!r:.80}, which this version does not "
        "know"
        for key, value in config.members.items()
        if key not in known and not _is_unset(value)
    ]


def _plain(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _is_unset(value: object) -> bool:
    """Return whether a value is null, false or empty. 0 is a value."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
