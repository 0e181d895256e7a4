"""What every layer kind is: how it reads shapes, and the product it adds to the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from lora_export.records import Delta

    Product = Callable[[Delta, Mapping[str, torch.Tensor], int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of the factors and of the base weight they update."""

    a: tuple[int, int]
    b: tuple[int, int]
    weight: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One way in which a kind explains the shapes of an update.

    enable_lora: None where the kind has no blocks. blocks: (enabled, all) where the shapes tell
    how many blocks there are but not which of them are enabled.
    """

    kind: str
    rank: int
    fan_in_fan_out: bool = False
    enable_lora: tuple[bool, ...] | None = None
    blocks: tuple[int, int] | None = None


def always(_: Delta) -> bool:
    """Rows of every update of the kind may be computed apart."""
    return True


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What an update does to one sort of layer.

    The update is a matrix, whose rows can be computed apart: `matrix` gives its sizes. For most
    kinds it is the weight itself; a convolution's has the weight's elements in the same order.

    readings: every way in which the kind explains given shapes, by shapes alone.
    matrix: (rows, columns) of the update.
    product: (delta, factors by role, first row, row after the last) -> these rows of the unscaled
    update, by the very torch calls of the reference library, so that the bits are the same.
    cuttable: whether rows may be computed apart, with the same bits as all at once.
    expects: the shapes that the kind wants, in words, for messages.
    """

    name: str
    roles: tuple[str, ...]
    readings: Callable[[Shapes], list[Reading]]
    matrix: Callable[[Delta], tuple[int, int]]
    product: Product
    expects: str
    cuttable: Callable[[Delta], bool] = always


def weight_matrix(delta: Delta) -> tuple[int, int]:
    """The sizes of an update whose matrix is the weight itself."""
    rows, columns = delta.shape
    return rows, columns
