"""Opens a model to run it: a small one is loaded whole, a large one is read while it runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_export.errors import UsageError
from lora_export.models.memory import is_large, why_too_large

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Checkpoint, TensorRef


def open_model(
    source: ModelSource,
    checkpoint: Checkpoint,
    *,
    full: Mapping[str, TensorRef],
    untied: Sequence[str],
    dtype: str = "float32",
) -> nn.Module:
    """Build a model to run it, with the same outputs either way; see source.ModelSource.load.

    A large model that cannot be read while it runs is loaded whole where it fits into memory.

    Raises:
        FitError, InputError: see ModelSource.load.
        UsageError: the model can be read in neither way.
    """
    loaded = partial(source.load, checkpoint, full=full, untied=untied, dtype=dtype)
    too_large = why_too_large(checkpoint, whole=True)
    if not (too_large or (source.prefers_streaming and is_large(checkpoint))):
        return loaded()
    try:
        return source.stream(checkpoint, full=full, untied=untied, dtype=dtype)
    except UsageError as error:
        if too_large:
            [problem, *_] = error.problems
            message = f"{too_large}, and it cannot be read while it runs: {problem.message}"
            raise UsageError(
                message, where=problem.where, hint=problem.hint, cause="usage/not-streamed"
            ) from error
    return loaded()
