"""The class of transformers for a task, from the mappings behind its own Auto classes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.network.quiet import quiet
from lora_export.planning.names.misfit import transformers_installed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The names of transformers' pipelines, and the mappings of modeling_auto that hold their classes.
# Of several mappings the first that knows the model_type counts.
TASKS = {
    "audio-classification": ("AUDIO_CLASSIFICATION",),
    "automatic-speech-recognition": ("SPEECH_SEQ_2_SEQ", "CTC"),
    "feature-extraction": ("",),
    "fill-mask": ("MASKED_LM",),
    "image-classification": ("IMAGE_CLASSIFICATION",),
    "image-text-to-text": ("IMAGE_TEXT_TO_TEXT",),
    "question-answering": ("QUESTION_ANSWERING",),
    "text-classification": ("SEQUENCE_CLASSIFICATION",),
    "text-generation": ("CAUSAL_LM",),
    "text2text-generation": ("SEQ_TO_SEQ_CAUSAL_LM",),
    "token-classification": ("TOKEN_CLASSIFICATION",),
    "zero-shot-image-classification": ("ZERO_SHOT_IMAGE_CLASSIFICATION",),
}
_SUFFIXES = {
    "ForSequenceClassification": "SEQUENCE_CLASSIFICATION",
    "ForTokenClassification": "TOKEN_CLASSIFICATION",
    "ForQuestionAnswering": "QUESTION_ANSWERING",
    "ForCausalLM": "CAUSAL_LM",
    "ForImageClassification": "IMAGE_CLASSIFICATION",
    "ForAudioClassification": "AUDIO_CLASSIFICATION",
}


def check_task(task: str | None) -> None:
    """Refuse an unknown task before anything is loaded.

    Raises:
        UsageError: the task is unknown. The hint names the nearest one, or lists all.
    """
    if task is None or task in TASKS:
        return
    near = get_close_matches(task, TASKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(TASKS)}"
    raise UsageError(f"{task!r} is no task", where="--task", hint=hint, cause="usage/option-value")


def class_for(config: Mapping[str, Any], task: str) -> str:
    """Return the name of the class that does `task` for the model_type of a config.json.

    Raises:
        UsageError: the task is unknown, or transformers has no class for it and this model_type.
    """
    check_task(task)
    kind = str(config.get("model_type", ""))
    found = _class(kind, TASKS[task])
    if found is not None:
        return found
    able = [name for name, mappings in TASKS.items() if _class(kind, mappings)]
    hint = f"it does {', '.join(able)}" if able else "name a factory with --model"
    raise UsageError(
        f"transformers has no class of the model_type {kind!r} for {task}",
        where="--task",
        hint=hint,
        cause="usage/option-value",
    )


def class_named(model_type: str, suffix: str) -> str | None:
    """Return the class of a model_type whose name ends with `suffix`, one of _SUFFIXES.

    It is the class that transformers' Auto class takes. None without one, or without transformers.
    """
    return _class(model_type, (_SUFFIXES[suffix],)) if transformers_installed() else None


def _class(model_type: str, mappings: Sequence[str]) -> str | None:
    with quiet():
        from transformers.models.auto import modeling_auto

    for name in mappings:
        stem = f"MODEL_FOR_{name}" if name else "MODEL"
        found = getattr(modeling_auto, f"{stem}_MAPPING_NAMES", {}).get(model_type)
        if isinstance(found, (tuple, list)):
            found = found[0]
        if isinstance(found, str):
            return found
    return None
