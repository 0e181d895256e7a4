"""The form of a layer kind: how it reads shapes, and what it adds to the weight.

Every file of this folder fills it in once. Planning and execution know this form, and no kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from lora_export.records import Delta, TensorRef

    Factors = Mapping[str, torch.Tensor]
    Product = Callable[[Delta, Factors, int, int], torch.Tensor]
    Change = Callable[[Delta, Factors, torch.Tensor, int, int], torch.Tensor]
    Prepare = Callable[[Delta, Factors], Factors]
    Scale = Callable[[Delta, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of the factors and of the base weight they update."""

    factors: Mapping[str, tuple[int, ...]]
    """By role: "A", "B" and the like."""
    weight: tuple[int, ...]

    @classmethod
    def of(cls, factors: Mapping[str, TensorRef], weight: tuple[int, ...]) -> Shapes:
        """Take the shapes of stored factors, by role."""
        return cls({role: ref.spec.shape for role, ref in factors.items()}, weight)

    @property
    def a(self) -> tuple[int, ...]:
        """Return the shape of A."""
        return self.factors["A"]

    @property
    def b(self) -> tuple[int, ...]:
        """Return the shape of B."""
        return self.factors["B"]

    @property
    def are_matrices(self) -> bool:
        """Return whether A and B have two sizes each."""
        return len(self.a) == len(self.b) == 2


@dataclass(frozen=True, slots=True)
class Reading:
    """One way in which a kind explains the shapes of an update."""

    kind: str
    """The name of the layer kind."""
    rank: int
    """The rank that the scaling is made of; 0 where the shapes leave it open."""
    fan_in_fan_out: bool = False
    """Whether the weight is stored (in, out)."""
    enable_lora: tuple[bool, ...] | None = None
    """Whether each block is adapted; None where the kind has no blocks or the shapes leave it
    open."""
    blocks: tuple[int, int] | None = None
    """(enabled, all) blocks, of a kind that has blocks."""


def as_they_are(_: Delta, factors: Factors) -> Factors:
    """Return the factors unchanged: the product takes them as the file holds them."""
    return factors


def multiplied(delta: Delta, update: torch.Tensor) -> torch.Tensor:
    """Multiply an update by the scaling, in place."""
    return update.mul_(delta.scaling)


def always(_: Delta) -> bool:
    """Return True: rows of every update of the kind may be computed apart."""
    return True


def if_matrix(shape: tuple[int, ...]) -> bool:
    """Return whether a weight has two sizes, which may be (out, in) or (in, out)."""
    return len(shape) == 2


def unturned(_: tuple[int, ...]) -> bool:
    """Return False: no weight of the kind is stored (in, out)."""
    return False


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What an update does to one sort of layer.

    The update is a matrix with the weight's elements in the weight's order. Its rows can be
    computed apart.
    """

    name: str
    """The kind's name, which plans and manifests carry."""
    roles: tuple[str, ...]
    """The roles of the factors that every update of the kind has."""
    readings: Callable[[Shapes], list[Reading]]
    """Lists every way in which the kind explains given shapes, by shapes alone."""
    matrix: Callable[[Delta], tuple[int, int]]
    """Gives (rows, columns) of the update."""
    product: Product | None
    """(delta, factors by role, first row, row after the last) -> these rows of the unscaled update.

    It makes the very torch calls of the reference library: other calls have other last bits. None
    for a kind with a `change`.
    """
    expects: str
    """The shapes that the kind wants, in words, for messages."""
    cuttable: Callable[[Delta], bool] = always
    """Whether rows may be computed apart, with the same bits as all at once."""
    tuners: frozenset[str] = frozenset({"loralib"})
    """The families of updates that the kind can read: "loralib", or an adapter's own word."""
    change: Change | None = None
    """Takes the place of `product` where the update depends on the weight.

    (delta, factors by role, rows of the base, first row, row after the last) -> these rows merged.
    The rows come in their stored dtype, or wider for an exact sum. The result is not yet rounded to
    the base's dtype.
    """
    twice: frozenset[str] = frozenset({"peft-safe"})
    """The recipes in which the library rounds the update to the base's dtype before it adds it."""
    optional: frozenset[str] = frozenset()
    """Roles that an update may have beside `roles`."""
    prepare: Prepare = as_they_are
    """Computes what all rows share, once a tensor, before `product` or `change`."""
    scale: Scale = multiplied
    """Scales an update in place, as the library does."""
    multiplies: bool = False
    """Whether the update multiplies the weight: it has no meaning beside another update then."""
    is_oriented: Callable[[tuple[int, ...]], bool] = if_matrix
    """Whether a weight of this shape may be stored (out, in) or (in, out)."""
    looks_up: bool = False
    """Whether the layer looks its rows up, as nn.Embedding does."""
    zero_at_start: str = "B"
    """The factor, of A and B, that training starts from zeros; the other is drawn."""

    def rows(self, delta: Delta, factors: Factors, first: int, stop: int) -> torch.Tensor:
        """Compute rows `first` to `stop - 1` of the unscaled update, by `product`.

        Raises:
            TypeError: the kind has a `change` instead.
        """
        if self.product is None:
            raise TypeError(f"{self.name} has no update apart from the weight")
        return self.product(delta, factors, first, stop)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a shape with all sizes but the first as one."""
    return shape[0], prod(shape[1:])


def weight_matrix(delta: Delta) -> tuple[int, int]:
    """Return (rows, columns) of the weight with all sizes but the first as one.

    A bias is one column.
    """
    return as_matrix(delta.shape)
