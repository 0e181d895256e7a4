"""The class of transformers that a folder's config.json names, and its configuration."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.models.hf.bounds import bound_config
from lora_export.models.hf.tasks import class_for
from lora_export.models.network.quiet import quiet
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from lora_export.records import Checkpoint


def is_known_type(model_type: str) -> bool:
    """Return whether transformers has a configuration for this model_type."""
    with quiet():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def class_of(base: Checkpoint, task: str | None) -> Any:
    """Return the class that does `task`, or without one the first that config.json names.

    Raises:
        InputError: transformers has no such class.
        UsageError: transformers has no class for the task.
    """
    import transformers

    architectures = base.config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if task is not None:
        names = [class_for(base.config, task)]
    found = next((getattr(transformers, str(name), None) for name in names), None)
    if found is not None:
        return found
    raise InputError(
        f"config.json names the architectures {names}, none of which transformers "
        f"{transformers.__version__} has",
        where=str(base.root),
        hint="name a factory with --model",
        cause="input/model-class",
    )


def config_of(base: Checkpoint, model_class: Any) -> Any:
    """Read config.json as the configuration of a class.

    Raises:
        InputError: transformers cannot read it.
        LimitError: it names more layers or labels than any model has.
    """
    bound_config(base)
    try:
        with quiet():
            return model_class.config_class.from_dict(deepcopy(dict(base.config)))
    except Exception as error:  # huggingface_hub's errors share no other base class
        reason = reason_of(error)
        message = f"transformers cannot read it for {model_class.__name__}: {reason}"
        raise InputError(
            message, where=str(base.root / "config.json"), cause="input/model-class"
        ) from error
