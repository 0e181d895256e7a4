"""From shapes and known facts to exactly one reading of each loralib update, or an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.layers import Shapes, all_kinds
from lora_export.planning.updates.readings import Unresolved, delta_of, no_fit, readings_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.layers import Reading
    from lora_export.records import Adapter, Delta, Facts, TensorSpec, Update


def resolve(
    adapter: Adapter,
    update: Update,
    module: str,
    base: TensorSpec,
    facts: Facts,
    *,
    has_bias: bool,
    model: str = "",
) -> Delta:
    """Resolve the one reading of `update` against the base tensor.

    Args:
        adapter: the adapter of the update.
        update: its factors by role.
        module: the model's name of the module.
        base: the tensor that is updated.
        facts: what options, a model, a manifest or the architecture state about the module.
        has_bias: the base holds a bias beside the weight, so the module is no embedding.
        model: the user's model, which has given its facts already; "" where none is named.

    Raises:
        Unresolved: no reading fits, several do, or alpha is not known.
    """
    where = f"{adapter.path}: {update.module or '(root module)'}"
    ask = _Ask(facts, where, model)
    shapes = Shapes.of(update.factors, base.shape)
    try:
        reading = _only_reading(shapes, ask, base, has_bias=has_bias)
        _check_rank(reading, facts, where)
    except Unresolved as unresolved:
        unresolved.missing += _alpha_faults(ask)
        raise
    alpha = _alpha(ask)
    scaling = alpha / reading.rank
    delta = delta_of(
        adapter, update, module, base, reading, rank=reading.rank, alpha=alpha, scaling=scaling
    )
    return replace(delta, enable_lora=reading.enable_lora or ())


@dataclass(frozen=True, slots=True)
class _Ask:
    """The question for the facts that one module lacks."""

    #: The known facts.
    facts: Facts
    #: The module's place, for messages.
    where: str
    #: The user's model, which lacks the facts too; "" where none is named.
    model: str

    def missing(self, message: str, hint: str, asks: str) -> Problem:
        """Return the problem of a missing fact; its hint adds --model where none was named.

        asks: the option that gives the fact, with a placeholder for its value.
        """
        if not self.model:
            hint = f"{hint}, or name your own model with --model"
            return Problem(message, self.where, hint, asks, cause="usage/missing-fact")
        why = f"{self.model} has no loralib module there (another name, or r = 0)"
        return Problem(message, self.where, f"{why}: {hint}", asks, cause="usage/missing-fact")


def _check_rank(reading: Reading, facts: Facts, where: str) -> None:
    if facts.rank is not None and facts.rank != reading.rank:
        message = f"rank is {reading.rank} in the file but {facts.rank} in {facts.source}"
        raise Unresolved(Problem(message, where, cause="usage/facts-contradict"), missing=False)


def _alpha_faults(ask: _Ask) -> list[Problem]:
    alpha = ask.facts.alpha
    if alpha is None:
        message = "alpha is not in the file, and it is never guessed"
        hint = "give the lora_alpha used in training: --alpha 16, or per module in --hparams FILE"
        return [ask.missing(message, hint, "--alpha ALPHA")]
    if math.isfinite(alpha) and alpha > 0:
        return []
    wanted = "give the lora_alpha used in training"
    hint = "--weight -1 subtracts an adapter" if alpha < 0 else "--weight scales a whole adapter"
    message = f"alpha = {alpha:g} is not a positive number"
    return [Problem(message, ask.where, f"{wanted}; {hint}", cause="usage/missing-fact")]


def _alpha(ask: _Ask) -> float:
    faults, alpha = _alpha_faults(ask), ask.facts.alpha
    if faults or alpha is None:
        raise Unresolved(faults[0], missing=True)
    return alpha


def _only_reading(shapes: Shapes, ask: _Ask, base: TensorSpec, *, has_bias: bool) -> Reading:
    facts, where = ask.facts, ask.where
    by_shape = readings_of("loralib", shapes)
    if not by_shape:
        raise Unresolved(no_fit("loralib", shapes, base, where), missing=False)
    if has_bias or facts.embeds is False:
        by_shape = [found for found in by_shape if not _looks_up(found)] or by_shape
    possible = [found for found in by_shape if _agrees(found, facts, base)]
    if not possible:
        raise Unresolved(_contradiction(by_shape, facts, where, base), missing=True)
    settled = _same_arithmetic_once(possible, facts, base)
    if len(settled) > 1:
        raise _ambiguous(settled, ask, base)
    return _with_blocks(settled[0], ask)


def _looks_up(reading: Reading) -> bool:
    return all_kinds()[reading.kind].looks_up


def _is_oriented(reading: Reading, base: TensorSpec) -> bool:
    return all_kinds()[reading.kind].is_oriented(base.shape)


def _agrees(reading: Reading, facts: Facts, base: TensorSpec) -> bool:
    if facts.kind is not None and reading.kind != facts.kind:
        return False
    if facts.fan_in_fan_out is None or not _is_oriented(reading, base):
        return True
    return reading.fan_in_fan_out == facts.fan_in_fan_out


def _same_arithmetic_once(readings: list[Reading], facts: Facts, base: TensorSpec) -> list[Reading]:
    """Return the readings without those of the same arithmetic, or of another orientation.

    An embedding, a transposed Linear and a MergedLinear of one block have the same update. A square
    weight with a given orientation is a Linear. Where its name is an embedding's, the user must
    give the kind.
    """
    whole = [reading for reading in readings if reading.blocks is None]
    linear = [reading for reading in whole if _is_oriented(reading, base)]
    tables = [reading for reading in whole if _looks_up(reading)]
    if not linear:
        return readings
    if not tables:
        return whole
    if all(reading.fan_in_fan_out for reading in linear):
        return tables
    if facts.fan_in_fan_out is False and not _named_embedding(base.name):
        return linear
    return whole


def _named_embedding(name: str) -> bool:
    parts = name.lower().split(".")
    return any("emb" in part or part in ("wte", "wpe") for part in parts)


def _with_blocks(reading: Reading, ask: _Ask) -> Reading:
    if reading.blocks is None:
        return reading
    enabled, blocks = reading.blocks
    given = ask.facts.enable_lora
    if given is None and reading.enable_lora is None:
        raise Unresolved(
            ask.missing(
                f"the shapes show that {enabled} of {blocks} blocks are adapted, not which",
                "give the enable_lora of your MergedLinear: --enable-lora 1,0,1 for query and "
                "value, or in --hparams FILE",
                "--enable-lora BLOCKS",
            ),
            missing=True,
        )
    if given is not None and (len(given) != blocks or sum(given) != enabled):
        raise Unresolved(
            Problem(
                f"enable_lora {[int(block) for block in given]} from {ask.facts.source} does not "
                f"fit the shapes, which have {blocks} blocks, {enabled} of them adapted",
                ask.where,
                cause="usage/facts-contradict",
            ),
            missing=True,
        )
    return replace(reading, enable_lora=given or reading.enable_lora)


def _describe(reading: Reading, base: TensorSpec) -> str:
    if not _is_oriented(reading, base):
        return reading.kind
    return f"{reading.kind} stored {'(in, out)' if reading.fan_in_fan_out else '(out, in)'}"


def _ambiguous(readings: list[Reading], ask: _Ask, base: TensorSpec) -> Unresolved:
    ways = " or ".join(_describe(reading, base) for reading in readings)
    problem = ask.missing(
        f"a weight {list(base.shape)} can be {ways}; the file does not show which",
        "--no-fan-in-fan-out for nn.Linear, --fan-in-fan-out for GPT-2's Conv1D, kind = "
        '"embedding" in --hparams FILE for an embedding',
        "--[no-]fan-in-fan-out",
    )
    unresolved = Unresolved(problem, missing=True)
    if len({reading.blocks for reading in readings}) == 1:  # every reading lacks the same blocks
        try:
            _with_blocks(readings[0], ask)
        except Unresolved as blocks:
            unresolved.missing += blocks.missing
    return unresolved


def _contradiction(readings: list[Reading], facts: Facts, where: str, base: TensorSpec) -> Problem:
    given = [f"kind = {facts.kind}"] if facts.kind else []
    if facts.fan_in_fan_out is not None:
        given.append(f"fan_in_fan_out = {facts.fan_in_fan_out}")
    ways = " or ".join(_describe(reading, base) for reading in readings)
    return Problem(
        f"{' and '.join(given)} from {facts.source} contradicts the shapes: a weight "
        f"{list(base.shape)} is {ways}",
        where,
        "give it per module in --hparams FILE if it applies to other modules only",
        cause="usage/facts-contradict",
    )
