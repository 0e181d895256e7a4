"""Updates whose adapter names alpha, rank and scaling: these are checked, and none is missing."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.layers import Shapes, all_kinds
from lora_export.planning.updates.readings import Unresolved, delta_of, no_fit, readings_of
from lora_export.records import HALF_DTYPES, Problem

if TYPE_CHECKING:
    from lora_export.layers import Reading
    from lora_export.planning.updates.orientation import Stored
    from lora_export.records import (
        Adapter,
        Delta,
        Facts,
        MergeRecipe,
        TensorSpec,
        Terms,
        Update,
    )


def resolve_configured(
    adapter: Adapter,
    update: Update,
    terms: Terms,
    module: str,
    base: TensorSpec,
    *,
    by_user: Facts,
    stored: Stored,
    recipe: MergeRecipe,
) -> Delta:
    """Resolve the one reading of `update` against the base tensor.

    Args:
        adapter: the adapter of the update.
        update: its factors by role.
        terms: the terms of the adapter's configuration.
        module: the model's name of the module.
        base: the tensor that is updated.
        by_user: the facts of the options, which must not contradict the configuration.
        stored: how square weights are stored, and the source of this.
        recipe: the library's merge that is reproduced.

    Raises:
        Unresolved: no reading fits, or an option or a rank contradicts the file.
    """
    where = f"{adapter.path}: {update.module or '(root module)'}"
    terms = _with_alpha(terms, by_user, where)
    _refuse_other_alpha(terms, by_user, where)
    shapes = Shapes.of(update.factors, base.shape)
    readings = readings_of(terms.tuner, shapes)
    if not readings:
        raise Unresolved(no_fit(terms.tuner, shapes, base, where), missing=False)
    if terms.tuner == "parameter" and len(readings) > 1 and stored.in_out is None:
        raise Unresolved(_square(terms, base, where), missing=True)
    if stored.doubt and len({one.fan_in_fan_out for one in readings}) > 1:
        raise Unresolved(_either(stored, base, where), missing=True)
    reading = _by_orientation(readings, stored)
    if problems := _contradictions(reading, readings, by_user, stored, base):
        unresolved = Unresolved(
            Problem(problems[0][0], where, problems[0][1], cause="usage/facts-contradict"),
            missing=True,
        )
        unresolved.missing = [
            Problem(message, where, hint, cause="usage/facts-contradict")
            for message, hint in problems
        ]
        raise unresolved
    rank = reading.rank or terms.rank or 1
    if terms.rank is not None and terms.rank != rank:
        message = f"rank is {reading.rank} in the tensors but {terms.rank} in {terms.source}"
        hint = "the configuration belongs to another file: save the adapter again"
        raise Unresolved(
            Problem(message, where, hint, cause="usage/facts-contradict"), missing=False
        )
    scaling = scaling_by_rule(terms, rank)
    delta = delta_of(
        adapter, update, module, base, reading, rank=rank, alpha=terms.alpha, scaling=scaling
    )
    return replace(
        delta,
        recipe=recipe,
        rule=terms.rule,
        indices=terms.indices,
        parameter=update.parameter,
        dtype=base.dtype,
        held=base.dtype if terms.held_as_base and base.dtype in HALF_DTYPES else "",
        loaded=_loaded(update, base),
        projection=(terms.seed,) if terms.seed is not None else (),
    )


def _loaded(update: Update, base: TensorSpec) -> str:
    """Return "F32" where PEFT narrows float64 factors: all but those of a float64 weight.

    PEFT 0.21.2, tuners.tuners_utils: _move_adapter_to_device_of_base_layer, cast_adapter_dtype.
    """
    wide = any(ref.spec.dtype == "F64" for ref in update.factors.values())
    return "F32" if wide and base.dtype != "F64" else ""


def _square(terms: Terms, base: TensorSpec, where: str) -> Problem:
    version = terms.version or "no version"
    return Problem(
        f"square experts {list(base.shape)} are read in two ways by the versions of PEFT, and "
        f"{terms.source} names {version} for this model",
        where,
        "--no-fan-in-fan-out for (experts, out, in), --fan-in-fan-out for (experts, in, out), as "
        "the PEFT that trained it read them",
        cause="usage/missing-fact",
    )


def _either(stored: Stored, base: TensorSpec, where: str) -> Problem:
    message = f"the square weight {list(base.shape)} may be stored in two ways: {stored.doubt}"
    hint = (
        "--no-fan-in-fan-out for nn.Linear, --fan-in-fan-out for Conv1D, or per module in "
        "--hparams FILE; a base folder with config.json shows it"
    )
    return Problem(message, where, hint, cause="usage/missing-fact")


def _by_orientation(readings: list[Reading], stored: Stored) -> Reading:
    """Choose the reading that the shapes fit; for a square weight, the one of `stored`."""
    fitting = [reading for reading in readings if reading.fan_in_fan_out == bool(stored.in_out)]
    return (fitting or readings)[0]


def _contradictions(
    reading: Reading, readings: list[Reading], by_user: Facts, stored: Stored, base: TensorSpec
) -> list[tuple[str, str]]:
    """List (message, hint) of every option that contradicts the reading, or has no meaning here."""
    found = []
    if by_user.kind is not None and by_user.kind != reading.kind:
        message = f"kind = {by_user.kind} from {by_user.source}, but this is {reading.kind}"
        found.append((message, "leave it out: the adapter's own configuration decides the kind"))
    if by_user.enable_lora is not None and len(by_user.enable_lora) > 1:
        message = f"enable_lora from {by_user.source} has no meaning for {reading.kind}"
        found.append((message, "leave it out: only loralib's MergedLinear has blocks"))
    turned = reading.fan_in_fan_out
    oriented = all_kinds()[reading.kind].is_oriented(base.shape)
    if by_user.fan_in_fan_out not in (None, turned) and oriented:
        by_shape = len({one.fan_in_fan_out for one in readings}) == 1
        why = "by its shape" if by_shape else stored.source
        message = (
            f"fan_in_fan_out = {by_user.fan_in_fan_out} from {by_user.source}, but the weight "
            f"{list(base.shape)} is stored {'(in, out)' if turned else '(out, in)'} {why}"
        )
        hint = (
            "leave it out, or give it in --hparams FILE for the modules that need it: those with "
            "square weights in a base whose model_type is not known"
        )
        found.append((message, hint))
    return found


def scaling_by_rule(terms: Terms, rank: int) -> float:
    """Return the scaling that the library computes from alpha and rank."""
    match terms.rule:
        case "alpha / rank":
            return terms.alpha / rank
        case "alpha / rank in float32":
            return _single(terms.alpha / rank)
        case "alpha / sqrt(rank)":
            return terms.alpha / math.sqrt(rank)
        case "alpha / (rank + 1e-5)":
            return terms.alpha / (rank + 1e-5)
        case "1":
            return 1.0


def _single(value: float) -> float:
    """Round to float32; return infinity where the value is too large, which the merge refuses."""
    try:
        (single,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(single)


def _with_alpha(terms: Terms, by_user: Facts, where: str) -> Terms:
    """Take the user's alpha where the configuration has 0, which libraries read in two ways.

    Raises:
        Unresolved: the user gives no alpha.
    """
    if terms.alpha or not terms.zero_is_ambiguous:
        return terms
    if by_user.alpha:
        return replace(terms, alpha=by_user.alpha, source=by_user.source)
    message = f"alpha is 0 in {terms.source}: trainers read that as the rank, merge scripts as 0"
    hint = (
        "give the alpha that it was trained with: --alpha 16, or per module in --hparams FILE; "
        "--allow-unmatched GLOB leaves the module out"
    )
    raise Unresolved(Problem(message, where, hint, cause="usage/missing-fact"), missing=True)


def _refuse_other_alpha(terms: Terms, by_user: Facts, where: str) -> None:
    if by_user.alpha is not None and by_user.alpha != terms.alpha:
        message = (
            f"alpha is {terms.alpha:g} in {terms.source} but {by_user.alpha:g} in {by_user.source}"
        )
        hint = "leave it out: the adapter names its alpha; --weight scales a whole adapter"
        raise Unresolved(
            Problem(message, where, hint, cause="usage/facts-contradict"), missing=True
        )
