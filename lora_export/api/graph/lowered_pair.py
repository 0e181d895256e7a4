"""The two files of an encoder-decoder in a lower precision, made and proven together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.int8_codes import cure_of
from lora_export.api.graph.lower_precision import (
    Lowered,
    audit_file,
    form_facts,
    found_size,
    half_again,
    lower_file,
    size_facts,
    weight_facts,
    written_form,
)
from lora_export.api.graph.measured_loss import checks_of, loss_in_torch, probes_of
from lora_export.api.proof.model_proof import probes_for
from lora_export.records import at_level

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.api.graph.encoder_pair import Pair
    from lora_export.api.graph.forms import Form, Full
    from lora_export.api.job.planned_job import Job
    from lora_export.records import Check, WrittenFile
    from lora_export.verification.model.loss import Loss


@dataclass(frozen=True, slots=True)
class LoweredPair:
    """Two lowered files, and what they are made from."""

    job: Job
    pair: Pair
    #: Holds both files, or will.
    folder: Path
    #: The float32 graph of each file, by its name without suffix.
    fulls: Mapping[str, Full]
    #: As asked for.
    form: Form

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / f"{name}.onnx"

    @property
    def forms(self) -> dict[str, Form]:
        """Return the form of each finished file, by name."""
        return {name: written_form(self.path(name), self.form) for name in self.fulls}

    @property
    def size(self) -> int:
        """Return the bytes of both files in float32, which are not written."""
        return sum(full.size for full in self.fulls.values())


def lower_pair(
    made: LoweredPair, *, verify: bool
) -> tuple[tuple[WrittenFile, ...], tuple[Check, ...], dict[str, Any]]:
    """Write both lowered files into the folder and prove them.

    Returns:
        (files, checks, facts for the report); no checks unless `verify`.

    Raises:
        FitError, InputError: as for `lower_file`.
    """
    with made.job.clock("lower the precision"):
        lowered = {
            name: lower_file(full, made.path(name), made.form) for name, full in made.fulls.items()
        }
    files = tuple(file for one in lowered.values() for file in one.files)
    checks: tuple[Check, ...] = ()
    facts: dict[str, Any] = {}
    if verify:
        forms = dict.fromkeys(made.fulls, made.form)
        checks, facts, _ = _prove(made, forms, lowered)
    sizes = size_facts(sum(file.size for file in files), made.size)
    return files, checks, {"lowered": {**form_facts(made.form, ran=verify), **sizes, **facts}}


def prove_pair_again(made: LoweredPair) -> tuple[tuple[Check, ...], dict[str, Any]]:
    """Return (checks, facts for the report) of two lowered files that exist already.

    Raises:
        FitError, InputError: the float16 export cannot be made; see `lower_file`.
    """
    found = {name: Lowered((), half_again(full, made.form)) for name, full in made.fulls.items()}
    forms = made.forms
    checks, facts, now = _prove(made, forms, found)
    words = form_facts(next(iter(forms.values())), ran=True)
    return checks, {"lowered": {**words, **size_facts(now, made.size), **facts}}


def _prove(
    made: LoweredPair, forms: Mapping[str, Form], files: Mapping[str, Lowered]
) -> tuple[tuple[Check, ...], dict[str, Any], int]:
    """Audit each file, then run both; return (checks, facts for the report, bytes of the files)."""
    with made.job.clock("precision"):
        checks: list[Check] = []
        facts: dict[str, Any] = {}
        size = 0
        for name, full in made.fulls.items():
            path, form = made.path(name), forms[name]
            found, weights = audit_file(full, path, form.precision, files[name].half)
            size += found_size(path, found)
            checks += [replace(check, name=f"{name}: {check.name}") for check in found]
            for title, table in weight_facts(weights).items():
                named = {f"{name}: {weight}": entry for weight, entry in table.items()}
                facts[title] = {**facts.get(title, {}), **named}
        if all(check.passed for check in checks):
            losses, more = _measured(made, next(iter(forms.values())))
            facts["loss"] = [loss.facts() for loss in losses]
            checks += more
    return at_level("precision", checks), facts, size


def _measured(made: LoweredPair, form: Form) -> tuple[tuple[Loss, ...], tuple[Check, ...]]:
    """Measure how far the outputs moved, all tokens at once and step by step, and check it.

    A float16 model runs in torch as well; see measured_loss.
    """
    from lora_export.verification.model.loading import load_shown_base, run_base
    from lora_export.verification.model.loss import Limits, measure
    from lora_export.verification.runtime.answer_loss import measure_answers
    from lora_export.verification.runtime.encoder_decoder import run_pair
    from lora_export.verification.runtime.sessions import find_providers, opener_on

    job, pair = made.job, made.pair
    opener = opener_on(find_providers(job.proof.provider))
    probes, own = probes_of(form, probes_for(job, pair.source))
    full = next(iter(made.fulls.values())).path.parent
    expected = run_pair(full, pair.source, probes, opener)
    base = run_base(pair.whole, probes)
    found = run_pair(made.folder, pair.source, own, opener)
    answers = measure_answers(
        made.folder,
        pair.source,
        list(zip(probes, own, strict=True)),
        pair.plain.open,
        partial(load_shown_base, pair.plain),
        opener=opener,
    )
    losses = (*measure(expected, found, base), *answers)
    limits = Limits(job.proof.atol, job.proof.rtol, form.allow_lossy, cure_of(form.precision))
    in_torch = partial(loss_in_torch, pair.whole, own, expected, base)
    return losses, checks_of(form, losses, limits, in_torch)
