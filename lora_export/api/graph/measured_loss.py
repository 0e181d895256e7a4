"""How far the outputs of a lowered file moved, measured in ONNX Runtime and in torch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.int8_codes import cure_of
from lora_export.api.proof.model_proof import probes_for
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.models.generation.caches import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lora_export.api.graph.forms import Form, Full
    from lora_export.models.source import ModelSource
    from lora_export.models.subject import Subject
    from lora_export.records import Check
    from lora_export.verification.model.loss import Limits, Loss

    Probe = dict[str, NDArray[Any]]

MOST_ROUNDS = 64
"""How many times the usual number of probes is run at most."""


def measured_loss(full: Full, path: Path, form: Form) -> tuple[tuple[Loss, ...], tuple[Check, ...]]:
    """Measure how far each output moved in ONNX Runtime, and check it.

    With keys and values, the graph generates text as well: the prompt in one step, then token by
    token through its own cache. The logits of both are outputs like the others here. Keys and
    values are checked, and their loss is not returned.

    A float16 model runs in torch as well, with every operator in float16. On the CPU, ONNX Runtime
    computes most operators in float32. It would not see a number that is too large for a GPU.
    """
    from lora_export.verification.model.loading import run_base
    from lora_export.verification.model.loss import Limits, measure
    from lora_export.verification.runtime.sessions import find_providers, run_model

    job, providers = full.job, find_providers(full.job.proof.provider)
    probes, own = probes_of(form, _probes(full, providers))
    expected = run_model(full.path, probes, providers=providers)
    base = run_base(full.subject, probes)
    found = run_model(path, own, providers=providers)
    losses = (*measure(expected, found, base), *_generated(full, path, providers))
    limits = Limits(
        job.proof.atol,
        job.proof.rtol,
        form.allow_lossy,
        cure_of(form.precision),
        inner=_inner(full.subject.source),
    )
    in_torch = partial(loss_in_torch, full.subject, own, expected, base)
    checks = checks_of(form, losses, limits, in_torch)
    return tuple(loss for loss in losses if loss.output not in limits.inner), checks


def _inner(source: ModelSource) -> frozenset[str]:
    """Return the names of the keys and values that a graph gives, where it has a cache."""
    if not isinstance(source, CachedDecoder):
        return frozenset()
    names = (spec.name for spec in source.inputs if spec.name.startswith(f"{PAST}."))
    return frozenset(name.replace(PAST, PRESENT, 1) for name in names)


def _probes(full: Full, providers: Sequence[str]) -> list[Probe]:
    """Return so many probes that each output has `PLACES` decisions, within `MOST_ROUNDS`.

    With fewer decisions, the share of equal ones is chance.
    """
    from lora_export.verification.model.loss import PLACES, decisions
    from lora_export.verification.runtime.sessions import run_model

    probes = probes_for(full.job, full.subject.source)
    runs = run_model(full.path, probes, providers=providers)
    counts = (sum(decisions(name, run[name]) for run in runs) for name in runs[0])
    fewest = min(filter(None, counts), default=PLACES)
    rounds = min(-(-PLACES // fewest), MOST_ROUNDS)
    return probes if rounds == 1 else probes_for(full.job, full.subject.source, rounds)


def probes_of(form: Form, probes: list[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Return the probes for float32 networks and those for the file, with the same numbers."""
    if form.precision.name != "fp16":
        return probes, probes
    own = [_cast(probe, "float32", "float16") for probe in probes]
    return [_cast(probe, "float16", "float32") for probe in own], own


def _cast(probe: Mapping[str, NDArray[Any]], old: str, new: str) -> Probe:
    """Return the probe with its arrays of the dtype `old` in the dtype `new`."""
    return {
        name: array.astype(new) if array.dtype.name == old else array
        for name, array in probe.items()
    }


def checks_of(
    form: Form, losses: Sequence[Loss], limits: Limits, in_torch: Callable[[], Sequence[Loss]]
) -> tuple[Check, ...]:
    """Return the checks of the losses of a file; of float16 also those of the model in torch.

    in_torch: measures these; see loss_in_torch.
    """
    from lora_export.verification.model.loss import loss_checks

    checks = loss_checks(losses, form.precision.name, limits)
    if form.precision.name == "fp16":
        checks = (*checks, *loss_checks(in_torch(), "fp16 in torch", limits))
    return checks


def loss_in_torch(
    subject: Subject, own: Sequence[Probe], expected: Sequence[Probe], base: Sequence[Probe]
) -> tuple[Loss, ...]:
    """Measure how far the outputs of the merged model move with every operator in float16.

    Args:
        subject: the network with its base and merged weights.
        own: the probes in float16.
        expected: the outputs of the float32 graph on the same numbers.
        base: those of the base.
    """
    from lora_export.verification.model.loading import run_merged
    from lora_export.verification.model.loss import measure

    return measure(expected, run_merged(subject, own, dtype="float16"), base)


def _generated(full: Full, path: Path, providers: Sequence[str]) -> tuple[Loss, ...]:
    """Measure how far the logits of a text moved that the file goes through with its cache."""
    from lora_export.verification.model.loading import load_shown_base
    from lora_export.verification.runtime.generation_loss import measure_generation
    from lora_export.verification.runtime.sessions import opener_on

    source = full.subject.source
    if not isinstance(source, CachedDecoder):
        return ()
    plain = replace(full.subject, source=source.plain)
    return measure_generation(
        path,
        source,
        plain.open,
        partial(load_shown_base, plain),
        seed=full.job.proof.seed,
        opener=opener_on(providers),
    )
