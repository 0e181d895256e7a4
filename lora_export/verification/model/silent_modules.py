"""Finds adapted modules that the forward never calls, whose live branches prove nothing there.

The user's own network with its low-rank modules is then the unmerged model, if there is one.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from lora_export.errors import FitError, UsageError
from lora_export.records import Problem
from lora_export.verification.factors import changes_nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Delta, MergePlan
    from lora_export.verification.formulas.signatures import LiveBranch
    from lora_export.verification.model.runs import Probe

_MEDIA = ("pixel_values", "input_features", "input_values")
"""The starts of the names of transformers' inputs of images, videos and sounds."""


def silent_modules(branches: Sequence[LiveBranch]) -> list[str]:
    """Return the modules with an update that the model has not called.

    A module does not count if its update changes nothing, or if the same update was called under
    another name.
    """
    called = [branch.delta for branch in branches if branch.calls]
    return [
        branch.delta.module
        for branch in branches
        if branch.calls == 0
        and not any(_is_one(branch.delta, delta) for delta in called)
        and not changes_nothing(branch.delta)
    ]


def _is_one(left: Delta, right: Delta) -> bool:
    """Return whether both are one update under two names of a tied tensor.

    A model may use only some of the names.
    """
    return left.adapter == right.adapter and left.factors is right.factors


def missing_media(model: nn.Module, probe: Probe) -> list[str]:
    """Return the inputs of images, videos and sounds that the model takes and the probe lacks."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in parameters if name.startswith(_MEDIA) and name not in probe]


def load_own_modules(
    source: ModelSource, plan: MergePlan, silent: Sequence[str], media: Sequence[str]
) -> nn.Module:
    """Load the user's own network, unmerged, in place of live branches that are never called.

    Args:
        source: builds the networks.
        plan: what is merged.
        silent: the modules that are never called.
        media: inputs that the probes lack.

    Raises:
        UsageError: inputs are missing, without which the modules may not be called.
        FitError: the user has given no network with low-rank modules of its own.
    """
    if media:
        hint = "give them as well with --inputs FILE.npz"
        message = f"without {' and '.join(media)} the model's forward never calls this module"
        raise UsageError.of(
            [Problem(message, module, hint, cause="usage/model-inputs") for module in silent]
        )
    own = None if plan.reshaped else source.load_live(plan)
    if own is not None:
        return own
    hint = (
        "its parent may read the weight directly: build the network of --model with the low-rank "
        "modules of its training, or leave the update out with --allow-unmatched"
    )
    message = "the model's forward never calls this module, so its live branch proves nothing"
    raise FitError.of(
        [Problem(message, module, hint, cause="fit/silent-module") for module in silent]
    )
