"""What every layer kind is: how it reads shapes, and the product it adds to the weight."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Shapes of the factors, by role, and of the base weight they update."""

    factors: Mapping[str, tuple[int, ...]]
    weight: tuple[int, ...]

    @classmethod
    def of(cls, factors: Mapping[str, TensorRef], weight: tuple[int, ...]) -> Shapes:
        """Those of stored factors."""
        return cls({role: ref.spec.shape for role, ref in factors.items()}, weight)

    @property
    def a(self) -> tuple[int, ...]:
        """Shape of A."""
        return self.factors["A"]

    @property
    def b(self) -> tuple[int, ...]:
        """Shape of B."""
        return self.factors["B"]

    @property
    def are_matrices(self) -> bool:
        """A and B have two sizes each."""
        return len(self.a) == len(self.b) == 2  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Reading:
    """One way in which a kind explains the shapes of an update.

    rank: 0 where the shapes do not tell the one that the scaling is made of.
    enable_lora: None where the kind has no blocks. blocks: (enabled, all) where the shapes tell
    how many blocks there are but not which of them are enabled.
    """

    kind: str
    rank: int
    fan_in_fan_out: bool = False
    enable_lora: tuple[bool, ...] | None = None
    blocks: tuple[int, int] | None = None


def as_they_are(_: Delta, factors: Factors) -> Factors:
    """The product takes the factors of the file."""
    return factors


def multiplied(delta: Delta, update: torch.Tensor) -> torch.Tensor:
    """One multiplication by the scaling, in place."""
    return update.mul_(delta.scaling)


def always(_: Delta) -> bool:
    """Rows of every update of the kind may be computed apart."""
    return True


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What an update does to one sort of layer.

    The update is a matrix, whose rows can be computed apart: `matrix` gives its sizes. For most
    kinds it is the weight itself; a convolution's has the weight's elements in the same order.

    tuners: the families of updates that the kind can read; "loralib", or an adapter's own word.
    readings: every way in which the kind explains given shapes, by shapes alone.
    matrix: (rows, columns) of the update.
    product: (delta, factors by role, first row, row after the last) -> these rows of the unscaled
    update, by the very torch calls of the reference library, so that the bits are the same.
    change: instead of a product, where the update depends on the weight: (delta, factors, rows of
    the base in their stored dtype, or wider for an exact sum, first row, row after the last) ->
    the same rows after it, not yet rounded to the base's dtype.
    cuttable: whether rows may be computed apart, with the same bits as all at once.
    twice: the recipes in which the library rounds the update to the base's dtype before the add.
    optional: roles that an update may have beside `roles`. prepare: what all rows share, computed
    once a tensor, before product or change. scale: how the library scales an update, in place.
    multiplies: the update multiplies the weight, so that it has no meaning beside another one.
    expects: the shapes that the kind wants, in words, for messages.
    """

    name: str
    roles: tuple[str, ...]
    readings: Callable[[Shapes], list[Reading]]
    matrix: Callable[[Delta], tuple[int, int]]
    product: Product | None
    expects: str
    cuttable: Callable[[Delta], bool] = always
    tuners: frozenset[str] = frozenset({"loralib"})
    change: Change | None = None
    twice: frozenset[str] = frozenset({"peft-safe"})
    optional: frozenset[str] = frozenset()
    prepare: Prepare = as_they_are
    scale: Scale = multiplied
    multiplies: bool = False

    def rows(self, delta: Delta, factors: Factors, first: int, stop: int) -> torch.Tensor:
        """`product`, of a kind that has one."""
        if self.product is None:
            raise TypeError(f"{self.name} has no update apart from the weight")
        return self.product(delta, factors, first, stop)


def weight_matrix(delta: Delta) -> tuple[int, int]:
    """The sizes of an update whose matrix is the weight itself."""
    rows, columns = delta.shape
    return rows, columns
