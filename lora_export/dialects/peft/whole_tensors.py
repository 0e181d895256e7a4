"""Reads tensors that a PEFT file holds whole: modules_to_save, biases, copies of the layer below.

PEFT 0.21.2 (utils.other.ModulesToSaveWrapper, utils.save_and_load) writes `classifier.weight`.
Older versions wrote `classifier.modules_to_save.default.weight`. With bias="all" they also wrote
the untrained `classifier.original_module.bias`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.contents import same_content
from lora_export.dialects.peft.keys import equal_to, other_reading, plain_key
from lora_export.records import Problem, Replacement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Origin, TensorRef

    Whole = tuple[list[Replacement], dict[str, str], list[Problem]]

_WRAPPERS = frozenset({"modules_to_save", "base_layer", "original_module", "token_adapter"})
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""The modules that peft_model.PeftModelFor... adds to modules_to_save, by task."""

TIED = ("lm_head", "decoder", "embed_tokens", "vocab_projector", "embed_out")
"""Last names of input tables, and of the heads that are tied to one."""

MAX_LAYERS = 10_000
"""The most layers that layer_replication may make."""


def saved_modules(config: PeftConfig) -> tuple[str, ...]:
    """Return the modules that were trained whole: those of modules_to_save and of the task."""
    named = [name for name in config.texts("modules_to_save") if name]
    return tuple(dict.fromkeys([*named, *automatic_heads(config)]))


def automatic_heads(config: PeftConfig) -> tuple[str, ...]:
    """Return the modules that PEFT saves for the task; a model has one of them or none."""
    return _HEADS.get(task_of(config), ())


def task_of(config: PeftConfig) -> str:
    """Return the task type in capitals (CAUSAL_LM, SEQ_CLS, ...), "" if the config has none."""
    return config.text("task_type").upper()


def is_in(name: str, modules: Collection[str]) -> bool:
    """Return whether a tensor belongs to one of `modules`; PEFT compares the ends of names."""
    parts = name.split(".")[:-1]
    paths = [".".join(parts[: place + 1]) for place in range(len(parts))]
    return any(path.endswith(module) for path in paths for module in modules)


def replication_of(config: PeftConfig) -> tuple[tuple[int, int], ...]:
    """Read layer_replication: (first layer, last + 1), in the order of the new model.

    Raises:
        InputError: it is no list of such pairs, or makes more than MAX_LAYERS layers.
    """
    value = config.members.get("layer_replication")
    if value is None:
        return ()
    pairs: list[Any] = value if isinstance(value, list) else [None]
    for pair in pairs:
        are_two = isinstance(pair, list) and len(pair) == 2
        if not are_two or not all(type(end) is int for end in pair) or not 0 <= pair[0] < pair[1]:
            config.refuse("layer_replication", f"= {value!r:.80} is no list of [first, end] layers")
    if sum(end - first for first, end in pairs) > MAX_LAYERS:
        config.refuse("layer_replication", f"makes more than {MAX_LAYERS} layers")
    return tuple((first, end) for first, end in pairs)


def whole_tensors(
    config: PeftConfig,
    others: Mapping[str, TensorRef],
    adapters: Collection[str],
    joined: Mapping[Path, str],
) -> Whole:
    """Read all tensors that are no factors.

    Args:
        config: the adapter's config.
        others: the tensors by key.
        adapters: names that PEFT may have put after modules_to_save.
        joined: see AdapterFile.

    Returns:
        the replacements, the tensors left out with the reason, and all problems.
    """
    saved = saved_modules(config)
    found: dict[str, Replacement] = {}
    left_out: dict[str, str] = {}
    untrained = []
    problems: list[Problem] = []
    for key, ref in others.items():
        parts = plain_key(key).split(".")
        name = _target(parts, adapters)
        if "original_module" in parts:
            untrained.append((key, name))
            continue
        item = Replacement(name, ref, _origin(parts, name, (*saved, *_tied_modules(config))))
        other = found.setdefault(name, item)
        if other is item:
            continue
        same = same_content(other.ref, ref)
        if other.ref.file != ref.file and ref.file in joined:
            left_out[key] = equal_to(other.ref)
            problems += [] if same else [other_reading(other.ref, ref, joined)]
            continue
        left_out[key] = f"the same as {other.ref.spec.name}"
        if not same:
            message = f"differs from {other.ref.spec.name}, and both are the base's {name}"
            where = f"{config.path.parent}: {key}"
            problems.append(
                Problem(message, where, "save the adapter again", cause="input/incomplete")
            )
    if problems:
        return [], {}, problems
    left_out.update((k, "replaced by modules_to_save") for k, n in untrained if n in found)
    problems = [_only_original(config, key) for key, name in untrained if name not in found]
    return list(found.values()), left_out, problems


def _origin(parts: Collection[str], name: str, saved: Collection[str]) -> Origin:
    if "modules_to_save" in parts or is_in(name, saved):
        return "module"
    return "base" if "base_layer" in parts and name.endswith("weight") else "shared"


def _tied_modules(config: PeftConfig) -> tuple[str, ...]:
    """Return the modules that PEFT saves with a tied table; the config does not name them."""
    trained = config.flag("ensure_weight_tying") and any(config.texts("modules_to_save"))
    return TIED if trained else ()


def _target(parts: Collection[str], adapters: Collection[str]) -> str:
    """Return the base's name: the key without PEFT's components and the adapter's name."""
    found: list[str] = []
    after_wrapper = False
    for part in parts:
        is_wrapper = part in _WRAPPERS
        if not is_wrapper and not (after_wrapper and part in adapters):
            found.append(part)
        after_wrapper = part == "modules_to_save"
    return ".".join(found)


def _only_original(config: PeftConfig, key: str) -> Problem:
    message = "is the untrained module, and the trained one is not in the file"
    return Problem(
        message, f"{config.path.parent}: {key}", "save the adapter again", cause="input/incomplete"
    )
