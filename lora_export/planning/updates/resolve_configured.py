"""Updates whose adapter says alpha, rank and scaling itself: nothing is asked, all is checked."""

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


def resolve_said(
    adapter: Adapter,
    update: Update,
    said: Terms,
    module: str,
    base: TensorSpec,
    *,
    by_user: Facts,
    stored: Stored,
    recipe: MergeRecipe,
) -> Delta:
    """Resolve the one reading of `update` against the base tensor.

    by_user: what the user's options say, which must not contradict what is known.
    stored: how square weights are stored, and who says so.

    Raises:
        Unresolved: no reading fits, or an option or a rank contradicts the file.
    """
    where = f"{adapter.path}: {update.module or '(root module)'}"
    said = _with_alpha(said, by_user, where)
    _refuse_other_alpha(said, by_user, where)
    shapes = Shapes.of(update.factors, base.shape)
    readings = readings_of(said.tuner, shapes)
    if not readings:
        raise Unresolved(no_fit(said.tuner, shapes, base, where), missing=False)
    if said.tuner == "parameter" and len(readings) > 1 and stored.in_out is None:
        raise Unresolved(_square(said, base, where), missing=True)
    if stored.doubt and len({one.fan_in_fan_out for one in readings}) > 1:
        raise Unresolved(_either(stored, base, where), missing=True)
    reading = _by_orientation(readings, stored)
    if problems := _contradictions(reading, readings, by_user, stored, base):
        unresolved = Unresolved(Problem(problems[0][0], where, problems[0][1]), missing=True)
        unresolved.missing = [Problem(message, where, hint) for message, hint in problems]
        raise unresolved
    rank = reading.rank or said.rank or 1
    if said.rank is not None and said.rank != rank:
        message = f"rank is {reading.rank} in the tensors but {said.rank} in {said.source}"
        hint = "the configuration belongs to another file: save the adapter again"
        raise Unresolved(Problem(message, where, hint), missing=False)
    scaling = _scaling(said, rank)
    delta = delta_of(
        adapter, update, module, base, reading, rank=rank, alpha=said.alpha, scaling=scaling
    )
    return replace(
        delta,
        recipe=recipe,
        rule=said.rule,
        indices=said.indices,
        parameter=update.parameter,
        dtype=base.dtype,
        held=base.dtype if said.held_as_base and base.dtype in HALF_DTYPES else "",
        loaded=_loaded(update, base),
        projection=(said.seed,) if said.seed is not None else (),
    )


def _loaded(update: Update, base: TensorSpec) -> str:
    """Return "F32" where PEFT narrows float64 factors: all but those of a float64 weight.

    PEFT 0.21.2, tuners.tuners_utils: _move_adapter_to_device_of_base_layer, cast_adapter_dtype.
    """
    wide = any(ref.spec.dtype == "F64" for ref in update.factors.values())
    return "F32" if wide and base.dtype != "F64" else ""


def _square(said: Terms, base: TensorSpec, where: str) -> Problem:
    version = said.version or "no version"
    return Problem(
        f"square experts {list(base.shape)} are read in two ways by the versions of PEFT, and "
        f"{said.source} says {version} for this model",
        where,
        "--no-fan-in-fan-out for (experts, out, in), --fan-in-fan-out for (experts, in, out), as "
        "the PEFT that trained it read them",
    )


def _either(stored: Stored, base: TensorSpec, where: str) -> Problem:
    message = f"the square weight {list(base.shape)} may be stored in two ways: {stored.doubt}"
    hint = (
        "--no-fan-in-fan-out for nn.Linear, --fan-in-fan-out for Conv1D, or per module in "
        "--hparams FILE; a folder with config.json tells it"
    )
    return Problem(message, where, hint)


def _by_orientation(readings: list[Reading], stored: Stored) -> Reading:
    """Choose the reading by shape; of a square weight, as it is stored."""
    fitting = [reading for reading in readings if reading.fan_in_fan_out == bool(stored.in_out)]
    return (fitting or readings)[0]


def _contradictions(
    reading: Reading, readings: list[Reading], by_user: Facts, stored: Stored, base: TensorSpec
) -> list[tuple[str, str]]:
    """List (message, hint) of every fact that is known otherwise, or has no meaning here."""
    found = []
    if by_user.kind is not None and by_user.kind != reading.kind:
        message = f"kind = {by_user.kind} from {by_user.source}, but this is {reading.kind}"
        found.append((message, "leave it out: the adapter's own configuration says what it is"))
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
            "leave it out, or say it of the modules that need it in --hparams FILE: those with "
            "square weights in a base whose model_type is not known"
        )
        found.append((message, hint))
    return found


def _scaling(said: Terms, rank: int) -> float:
    match said.rule:
        case "alpha / rank":
            return said.alpha / rank
        case "alpha / rank in float32":
            return _single(said.alpha / rank)
        case "alpha / sqrt(rank)":
            return said.alpha / math.sqrt(rank)
        case "alpha / (rank + 1e-5)":
            return said.alpha / (rank + 1e-5)
        case "1":
            return 1.0


def _single(value: float) -> float:
    """Round to float32; infinite where that is too narrow, which the merge refuses."""
    try:
        (single,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(single)


def _with_alpha(said: Terms, by_user: Facts, where: str) -> Terms:
    """Take the user's alpha where an alpha of 0 has two meanings, and means nothing."""
    if said.alpha or not said.zero_is_ambiguous:
        return said
    if by_user.alpha:
        return replace(said, alpha=by_user.alpha, source=by_user.source)
    message = f"alpha is 0 in {said.source}: trainers read that as the rank, merge scripts as 0"
    hint = (
        "say which alpha it was trained with: --alpha 16, or per module in --hparams FILE; "
        "--allow-unmatched GLOB leaves the module out"
    )
    raise Unresolved(Problem(message, where, hint), missing=True)


def _refuse_other_alpha(said: Terms, by_user: Facts, where: str) -> None:
    if by_user.alpha is not None and by_user.alpha != said.alpha:
        message = (
            f"alpha is {said.alpha:g} in {said.source} but {by_user.alpha:g} in {by_user.source}"
        )
        hint = "leave it out: the adapter says its own; --weight is its strength"
        raise Unresolved(Problem(message, where, hint), missing=True)
