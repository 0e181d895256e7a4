"""The steps that all ways of resolving an update share: the readings of its shapes, the delta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.elsewhere import EMPTY
from lora_export.layers import all_kinds
from lora_export.records import Delta, Problem

if TYPE_CHECKING:
    from lora_export.layers import Reading, Shapes
    from lora_export.records import Adapter, TensorSpec, Update


class Unresolved(Exception):  # noqa: N818 - carries Problems to the collector, never to the user
    """An update without exactly one reading."""

    def __init__(self, problem: Problem, *, missing: bool) -> None:
        """Start with one problem; `missing` makes it a fact that the user has to give."""
        super().__init__(problem.message)
        self.missing = [problem] if missing else []
        self.unfit = [] if missing else [problem]


def readings_of(tuner: str, shapes: Shapes) -> list[Reading]:
    """List every way in which the layer kinds of `tuner` explain the shapes.

    No layer has a weight or a factor without elements.
    """
    if any(0 in shape for shape in (shapes.weight, *shapes.factors.values())):
        return []
    roles = shapes.factors.keys()
    kinds = [
        kind
        for kind in all_kinds().values()
        if tuner in kind.tuners and set(kind.roles) <= roles <= {*kind.roles, *kind.optional}
    ]
    return [found for kind in kinds for found in kind.readings(shapes)]


def no_fit(tuner: str, shapes: Shapes, base: TensorSpec, where: str) -> Problem:
    """Return the problem of shapes that no layer explains; the base is most likely another one."""
    known = [kind for kind in all_kinds().values() if tuner in kind.tuners]
    wanted = "; ".join(f"{kind.name}: {kind.expects}" for kind in known)
    factors = " and ".join(f"{role} {list(shape)}" for role, shape in shapes.factors.items())
    if 0 in base.shape:
        message = f"the weight {base.name} {list(base.shape)} has no elements"
        return Problem(message, where, EMPTY, cause="fit/shape")
    return Problem(
        f"{factors} fit no layer with a weight {list(base.shape)}",
        where,
        f"is this the base that the adapter was trained on? Known layers: {wanted}",
        cause="fit/shape",
    )


def delta_of(
    adapter: Adapter,
    update: Update,
    module: str,
    base: TensorSpec,
    reading: Reading,
    *,
    rank: int,
    alpha: float,
    scaling: float,
) -> Delta:
    """Return the delta of an update by one reading of its shapes.

    Only the members that every library needs are set; callers replace the others.

    module: the model's name of the module. base: the tensor that is updated.
    """
    return Delta(
        adapter=str(adapter.path),
        module=module,
        kind=reading.kind,
        factors=update.factors,
        shape=base.shape,
        rank=rank,
        alpha=alpha,
        scaling=scaling,
        weight=adapter.weight,
        fan_in_fan_out=reading.fan_in_fan_out,
    )
