"""The ONNX file in a lower precision: made from the proven float32 graph, and proven itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.int8_codes import code_facts
from lora_export.api.graph.measured_loss import measured_loss
from lora_export.errors import InputError, UsageError
from lora_export.records import at_level

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.api.graph.forms import Form, Full
    from lora_export.api.job.planned_job import Job
    from lora_export.onnx_export.export import Exported
    from lora_export.onnx_export.precision.grids import Precision
    from lora_export.onnx_export.precision.rounded_sizes import Weights
    from lora_export.records import Check, WrittenFile


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered file as written."""

    files: tuple[WrittenFile, ...]
    #: The export in float16, where the file is one; else it is made from the float32 file.
    half: Exported | None = None


def full_proof(job: Job, form: Form) -> Job:
    """Return the job for the proof of the float32 graph.

    The user's tolerance applies to the file that they asked for. So it does not apply to the
    float32 graph from which a lowered one is made.
    """
    if not form.is_lowered:
        return job
    return replace(job, proof=replace(job.proof, atol=None, rtol=None))


def lower_into(
    path: Path, full: Full, form: Form, *, verify: bool
) -> tuple[tuple[WrittenFile, ...], tuple[Check, ...], dict[str, Any]]:
    """Write the lowered file to `path` and prove it.

    Returns:
        (files, checks, facts for the report); no checks unless `verify`.

    Raises:
        FitError, InputError: as for `lower_file`.
    """
    with full.job.clock("lower the precision"):
        lowered = lower_file(full, path, form)
    checks: tuple[Check, ...] = ()
    facts: dict[str, Any] = {}
    if verify:
        checks, facts = prove_lowered(full, path, form, lowered.half)
    sizes = size_facts(sum(file.size for file in lowered.files), full.size)
    return lowered.files, checks, {"lowered": {**form_facts(form, ran=verify), **sizes, **facts}}


def prove_again(path: Path, full: Full, form: Form) -> tuple[tuple[Check, ...], dict[str, Any]]:
    """Return (checks, facts for the report) of a lowered file that exists already.

    Raises:
        FitError, InputError: the float16 export cannot be made; see `lower_file`.
    """
    form = written_form(path, form)
    checks, facts = prove_lowered(full, path, form, half_again(full, form))
    sizes = size_facts(found_size(path, checks), full.size)
    return checks, {"lowered": {**form_facts(form, ran=True), **sizes, **facts}}


def written_form(path: Path, form: Form) -> Form:
    """Return the form that a finished file has; see `as_written`."""
    from lora_export.onnx_export.precision.written import as_written

    return replace(form, precision=as_written(path, form.precision))


def found_size(path: Path, checks: Sequence[Check]) -> int:
    """Return the bytes of a file with its external data, by the checks of its audit.

    They are 0 for a file that is not there.
    """
    from lora_export.onnx_export.file import external

    intact = checks[0].passed  # else the file may name any path as its external data
    if intact:
        return external.total_size(path)
    return path.stat().st_size if path.is_file() else 0


def form_facts(form: Form, *, ran: bool) -> dict[str, Any]:
    """Return what the precision is, for the report; see `code_facts`."""
    precision = form.precision
    return {
        "precision": precision.name,
        "words": precision.words,
        **code_facts(precision, ran=ran),
    }


def size_facts(now: int, before: int) -> dict[str, int]:
    """Return the bytes of what was written, and of the float32 file or files."""
    return {"bytes": now, "float32_bytes": before}


def lower_file(full: Full, path: Path, form: Form) -> Lowered:
    """Write the lowered file to `path`.

    Raises:
        FitError: a weight is too large for float16, or no weight can be quantised.
        InputError: the model does not run or cannot be captured in float16.
    """
    import onnx

    from lora_export.onnx_export.file.save import save_model
    from lora_export.onnx_export.precision.round_graph import lower

    if form.precision.name == "fp16":
        half = _half_export(full, form, path)
        return Lowered(half.files, half)
    model = onnx.ModelProto()
    model.CopyFrom(full.exported.graph)
    kept, made = lower(model, form.precision, full.exported.weights())
    written = save_model(model, path, kept, made=made, data_name=form.settings.data_name)
    return Lowered(written)


def half_again(full: Full, form: Form) -> Exported | None:
    """Return the export in float16 that a finished fp16 file must equal; None for other precisions.

    Raises:
        FitError, InputError: as for `lower_file`.
    """
    return _half_export(full, form, None) if form.precision.name == "fp16" else None


def _half_export(full: Full, form: Form, path: Path | None) -> Exported:
    """Export in float16 to `path`; with None make everything but the file.

    Raises:
        FitError, InputError: as for `lower_file`.
    """
    from lora_export.onnx_export.export import export
    from lora_export.onnx_export.precision.half import refuse_too_large

    refuse_too_large(full.exported.weights())
    try:
        return export(full.subject, path, replace(form.settings, dtype="float16"))
    except (InputError, UsageError) as error:
        problem = error.problems[0]
        raise InputError(
            f"the model can be exported in float32, but not in float16: {problem.message}",
            where=problem.where,
            hint="let its forward keep the dtype of its inputs and weights; or take --precision "
            "fp32 or int8-weights",
            cause="input/capture",
        ) from error


def prove_lowered(
    full: Full, path: Path, form: Form, half: Exported | None
) -> tuple[tuple[Check, ...], dict[str, Any]]:
    """Prove a lowered file: by its static audit, then by how far its outputs moved.

    Args:
        full: the float32 graph, which is proven already.
        path: the lowered file.
        form: the form that it must have.
        half: the export in float16 that an fp16 file must equal; None for other precisions.

    Returns:
        (checks, facts for the report).
    """
    with full.job.clock("precision"):
        checks, facts = _prove(full, path, form, half)
    return at_level("precision", checks), facts


def _prove(
    full: Full, path: Path, form: Form, half: Exported | None
) -> tuple[tuple[Check, ...], dict[str, Any]]:
    checks, weights = audit_file(full, path, form.precision, half)
    facts: dict[str, Any] = weight_facts(weights)
    if not all(check.passed for check in checks):
        return checks, facts
    losses, more = measured_loss(full, path, form)
    facts["loss"] = [loss.facts() for loss in losses]
    return (*checks, *more), facts


def audit_file(
    full: Full, path: Path, precision: Precision, half: Exported | None
) -> tuple[tuple[Check, ...], Weights | None]:
    """Return the checks of a lowered file without running it, and what became of its weights.

    Args:
        full: what it is made from.
        path: the file.
        precision: of the file.
        half: as for `prove_lowered`.
    """
    from lora_export.onnx_export.file.audit import audit
    from lora_export.onnx_export.precision.rounded_audit import FloatGraph, audit_lowered

    if half is None:
        made_from = FloatGraph(full.exported.graph, full.exported.weights())
        inputs = full.exported.inputs
        return audit_lowered(path, full=made_from, precision=precision, inputs=inputs)

    return audit(path, expected=half.weights, base=half.topology, inputs=half.inputs), None


def weight_facts(weights: Weights | None) -> dict[str, Any]:
    """Return the bytes of every weight for the report; nothing for an fp16 file."""
    if weights is None:
        return {}
    tables = {"rounded": weights.rounded, "kept": weights.kept}
    return {
        name: {parameter: {"float32": b, "bytes": now} for parameter, (b, now) in table.items()}
        for name, table in tables.items()
    }
