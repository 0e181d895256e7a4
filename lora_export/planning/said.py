"""Updates whose adapter says alpha, rank and scaling itself: nothing is asked, all is checked."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from lora_export.planning.resolve import Unresolved, no_fit, readings_of, shapes_of
from lora_export.records import HALF_DTYPES, Delta, Problem

if TYPE_CHECKING:
    from lora_export.layers import Reading
    from lora_export.records import (
        Adapter,
        Facts,
        MergeRecipe,
        Said,
        TensorSpec,
        Update,
    )


def resolve_said(
    adapter: Adapter,
    update: Update,
    said: Said,
    module: str,
    base: TensorSpec,
    *,
    given: Facts,
    stored_in_out: bool | None,
    recipe: MergeRecipe,
) -> Delta:
    """The one reading of `update` against the base tensor.

    given: what the user's options say, which must not contradict the file. stored_in_out: how the
    model stores square weights, None where nobody knows: then the file's own hint decides.

    Raises:
        Unresolved: no reading fits, or an option or a rank contradicts the file.
    """
    where = f"{adapter.path}: {update.module or '(root module)'}"
    _refuse_contradiction(said, given, where)
    shapes = shapes_of(update.factors, base)
    readings = readings_of(said.tuner, shapes)
    if not readings:
        raise Unresolved(no_fit(said.tuner, shapes, base, where), missing=False)
    if said.tuner == "parameter" and len(readings) > 1 and stored_in_out is None:
        raise Unresolved(_square(said, base, where), missing=True)
    reading = _by_orientation(readings, said, stored_in_out)
    rank = reading.rank or said.rank or 1
    if said.rank is not None and said.rank != rank:
        message = f"rank is {reading.rank} in the tensors but {said.rank} in {said.source}"
        hint = "the configuration belongs to another file: save the adapter again"
        raise Unresolved(Problem(message, where, hint), missing=False)
    return Delta(
        adapter=str(adapter.path),
        module=module,
        kind=reading.kind,
        factors=update.factors,
        shape=base.shape,
        rank=rank,
        alpha=said.alpha,
        scaling=_scaling(said, rank),
        weight=adapter.weight,
        fan_in_fan_out=reading.fan_in_fan_out,
        recipe=recipe,
        rule=said.rule,
        indices=said.indices,
        parameter=update.parameter,
        dtype=base.dtype,
        held=base.dtype if said.held_as_base and base.dtype in HALF_DTYPES else "",
        projection=(said.seed,) if said.seed is not None else (),
    )


def _square(said: Said, base: TensorSpec, where: str) -> Problem:
    version = said.version or "no version"
    return Problem(
        f"square experts {list(base.shape)} are read in two ways by the versions of PEFT, and "
        f"{said.source} says {version} for this model",
        where,
        "--no-fan-in-fan-out for (experts, out, in), --fan-in-fan-out for (experts, in, out), as "
        "the PEFT that trained it read them",
    )


def _by_orientation(
    readings: list[Reading],
    said: Said,
    stored_in_out: bool | None,  # noqa: FBT001
) -> Reading:
    """By shape; a square weight as the model stores it (PEFT corrects the file's own word)."""
    turned = said.fan_in_fan_out if stored_in_out is None else stored_in_out
    fitting = [reading for reading in readings if reading.fan_in_fan_out == bool(turned)]
    return (fitting or readings)[0]


def _scaling(said: Said, rank: int) -> float:
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
    """Rounded to float32; infinite where that is too narrow, which the merge refuses."""
    try:
        (single,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(single)


def _refuse_contradiction(said: Said, given: Facts, where: str) -> None:
    if given.alpha is not None and given.alpha != said.alpha:
        message = f"alpha is {said.alpha:g} in {said.source} but {given.alpha:g} in {given.source}"
        hint = "leave it out: the adapter says its own; --weight is its strength"
        raise Unresolved(Problem(message, where, hint), missing=True)
