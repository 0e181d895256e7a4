"""The choice of a source of models for a command: the named factory, or the base folder itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lora_export.errors import InputError, UsageError
from lora_export.models.factory import FactoryModel
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.hf.model_class import is_known_type
from lora_export.models.hf.tasks import class_for, class_named
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.planning.names.misfit import transformers_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.records import Checkpoint, Facts, NameTable

Answer = TypeVar("Answer")


def factory_model(
    model: str | None, inputs: Sequence[str], arrays: str | Path | None = None
) -> FactoryModel | None:
    """Load the user's factory; None when none is named.

    Args:
        model: as given to --model.
        inputs: as given to --input, in the grammar of inputs.grammar.
        arrays: an .npz file, which declares the inputs where nothing else does.

    Raises:
        UsageError: the factory cannot be imported, or an input breaks the grammar.
    """
    if not model:
        return None
    return FactoryModel(model, parse_inputs(inputs), Path(arrays) if arrays else None)


def folder_model(
    base: Checkpoint, inputs: Sequence[str], task: str | None = None
) -> HuggingFaceModel:
    """Find the model of a Hugging Face folder; `task` decides its class, else config.json does.

    inputs: as given to --input; empty for the usual ones of the architecture.

    Raises:
        UsageError: the base is no such folder, and the model's code is not known.
        InputError: its weights are quantised.
        MissingExtraError: transformers is not installed.
    """
    if not _names_class(base, task):
        factory = "--model path/to/model.py:build"
        task_helps = base.config.get("model_type") and not task
        with_task = f"--task text-classification (or another), or {factory}"
        raise UsageError(
            "the model's code is not known: the base has no config.json with architectures",
            where=str(base.root),
            hint=with_task if task_helps else factory,
            cause="usage/no-model",
        )
    if found := base.quantization:
        raise InputError(
            f"the base is quantised ({found.method}): no plain model can be built of it",
            where=str(base.root),
            hint="name the 16-bit base; what is made of it can be quantised",
            cause="input/quantised",
        )
    return HuggingFaceModel(base, parse_inputs(inputs), task)


def _names_class(base: Checkpoint, task: str | None) -> bool:
    """Return whether config.json names the model's class, or the task and model_type do."""
    return bool(base.config.get("architectures") or (task and base.config.get("model_type")))


def tied_groups(base: Checkpoint, task: str | None = None) -> tuple[tuple[str, ...], ...] | None:
    """List groups of parameters that the folder's architecture ties; None where it is unknown."""
    return _ask_folder(base, task, lambda model: model.facts().ties)


def runtime_names(base: Checkpoint, task: str | None = None) -> NameTable | None:
    """Return the names of the folder's model while it runs; None where the model is unknown."""
    return _ask_folder(base, task, lambda model: model.names)


def layers_of(base: Checkpoint, task: str | None = None) -> Callable[[str], Facts | None] | None:
    """Return a function from a module of the base to its facts; None where the model is unknown.

    It is unknown where auto_map names code of the folder's own: that code may store a weight
    otherwise.
    """
    if "auto_map" in base.config:
        return None
    return _ask_folder(base, task, lambda model: model.layers())


def _ask_folder(
    base: Checkpoint, task: str | None, question: Callable[[HuggingFaceModel], Answer]
) -> Answer | None:
    """Ask the folder's model, which is built without weights; None where there is no such model."""
    if not _names_class(base, task) or not transformers_installed():
        return None
    try:
        return question(HuggingFaceModel(base, (), task))
    except (InputError, UsageError):
        return None


def class_for_task(base: Checkpoint, suffix: str) -> str | None:
    """Return the class of transformers for the base's model_type whose name ends in `suffix`."""
    return class_named(str(base.config.get("model_type", "")), suffix)


def task_warnings(base: Checkpoint, task: str | None) -> tuple[str, ...]:
    """Return a warning where the task takes another class than config.json names, or has no effect.

    Raises:
        UsageError: the task is unknown, or transformers has no class for it.
    """
    if task and not base.config.get("model_type"):
        return (f"--task {task} had no effect: no config.json names the base's model_type",)
    named = base.config.get("architectures")
    if not task or not isinstance(named, list) or not named or not transformers_installed():
        return ()
    taken = class_for(base.config, task)
    if taken in named:
        return ()
    names = ", ".join(map(str, named))
    return (f"the model is {taken} (--task {task}), where config.json names {names}",)


def why_no_model(base: Checkpoint, task: str | None = None) -> str:
    """Return why no model can be built for a merge without --model; empty when one can."""
    if base.layout == "folder" and not base.config:
        return "the folder has no config.json, which names its model"
    if not _names_class(base, task):
        return (
            "no --model was named, and no config.json with architectures (--task names the class)"
        )
    if not transformers_installed():
        return "transformers is not installed (extra hf)"
    if found := base.quantization:
        return f"the base is described as quantised ({found.method})"
    return ""


def why_unloadable(base: Checkpoint) -> str:
    """Return why transformers' own classes refuse the folder; empty where they do not."""
    kind = base.config.get("model_type")
    if not transformers_installed() or not base.config.get("architectures"):
        return ""
    if isinstance(kind, str) and is_known_type(kind):
        return ""
    return f"config.json has the model_type {kind!r}, which transformers does not know"
