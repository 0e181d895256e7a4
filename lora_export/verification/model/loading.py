"""Loads the models of a proof: the base, the unmerged, the merged, the merged before rounding."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_export.errors import FitError, InputError, VerificationError
from lora_export.models.opening import open_model
from lora_export.records import Attribution
from lora_export.verification.model.runs import run
from lora_export.verification.unrounded.unrounded_model import (
    fill_unrounded,
    has_rounding,
    wider_sources,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.records import TensorRef
    from lora_export.verification.model.runs import Outputs, Probe


def run_base(subject: Subject, probes: Sequence[Probe]) -> list[Outputs]:
    """Return the outputs of the base without adapter, for every probe."""
    return run(load_shown_base(subject), probes)


def run_merged(subject: Subject, probes: Sequence[Probe], dtype: str = "float32") -> list[Outputs]:
    """Return the outputs of the merged model in torch, for every probe, loaded in `dtype`."""
    return run(load_merged(subject, dtype=dtype), probes)


def is_streamed(subject: Subject) -> bool:
    """Return whether the unmerged model is read while it runs; any other is in memory whole.

    Raises:
        FitError, InputError, UsageError: see load_unmerged.
    """
    from lora_export.models.streaming.streamed_weight import StreamedWeight

    parameters = load_unmerged(subject).parameters()
    return any(isinstance(parameter, StreamedWeight) for parameter in parameters)


def load_base(subject: Subject) -> nn.Module:
    """Load the base without anything of the adapters but tensors that the base lacks.

    Raises:
        FitError, InputError, UsageError: the model cannot be built.
    """
    plan = subject.plan
    return open_model(subject.source, plan.base, full=plan.new_tensors(), untied=())


def load_shown_base(subject: Subject) -> nn.Module:
    """Load the base to show the adapter's effect; its outputs have the shapes of the result's.

    Raises:
        FitError, InputError, UsageError: the model cannot be built.
    """
    return load_unmerged(subject) if subject.plan.reshaped else load_base(subject)


def base_is_unmerged(subject: Subject) -> bool:
    """Return whether the base is the unmerged model before its live branches are attached.

    It is not where a full tensor of an adapter replaces one of the base's.
    """
    plan = subject.plan
    return bool(plan.reshaped) or plan.full_tensors() == plan.new_tensors()


def load_unmerged(subject: Subject) -> nn.Module:
    """Load the base with every full tensor of the adapters, and without their updates.

    Full tensors may change the model's shape, and only the result's own config builds that. The
    merged model is then loaded, with the source of every tensor that the merge has changed.

    Raises:
        FitError, InputError, UsageError: the model cannot be built, or does not take the tensors.
    """
    plan = subject.plan
    if plan.reshaped:
        return load_merged(subject, full=plan.sources())
    full, untied = plan.full_tensors(), plan.separated
    return open_model(subject.source, plan.base, full=full, untied=untied)


def load_merged(
    subject: Subject, full: Mapping[str, TensorRef] | None = None, dtype: str = "float32"
) -> nn.Module:
    """Load the merged model in `dtype`.

    full: tensors that replace those of the result, by name.

    Raises:
        VerificationError: the model does not take the result. That is a fault of the merge.
    """
    with _as_fault():
        return subject.open(full, dtype=dtype)


def load_unrounded(subject: Subject) -> nn.Module:
    """Load the merged model in float32, with the weights that the merge had before it rounded them.

    Raises:
        VerificationError: the model does not take the result. That is a fault of the merge.
        UsageError: the model lacks an adapted module.
    """
    if not has_rounding(subject.plan):
        return load_merged(subject)
    model = load_merged(subject, full=wider_sources(subject))
    with _as_fault():
        fill_unrounded(model, subject)
    return model


@contextmanager
def _as_fault() -> Iterator[None]:
    """Turn the refusal of a result into a fault of the merge that made it."""
    try:
        yield
    except (FitError, InputError) as error:
        refusal = VerificationError.of(error.problems)
        refusal.attribution = Attribution("merge", detail="the model does not take its result")
        raise refusal from error
