"""An update resolved against its base tensor, which merge and proof share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records.adapters import MergeRecipe, ScalingRule
    from lora_export.records.files import TensorRef


@dataclass(frozen=True, slots=True)
class Delta:
    """One update resolved against its base tensor: all that the arithmetic needs."""

    adapter: str
    """The path of the adapter."""
    module: str
    """The module's name in the model: the base's name of the tensor less its last component."""
    kind: str
    """The name of the layer kind."""
    factors: Mapping[str, TensorRef]
    """By role, such as "A" and "B"."""
    shape: tuple[int, ...]
    """Of the base tensor."""
    rank: int
    """The number of rows of A."""
    alpha: float
    """lora_alpha of the training."""
    scaling: float
    """Computed by `rule`: the Python float that the library has."""
    weight: float = 1.0
    """The user's factor for the adapter."""
    fan_in_fan_out: bool = False
    """Whether the base stores (in, out)."""
    enable_lora: tuple[bool, ...] = ()
    """The blocks of a fused weight that are adapted; () for a weight of one block."""
    recipe: MergeRecipe = "loralib"
    """Whose arithmetic and rounding, unless the plan asks for the exact sum."""
    rule: ScalingRule = "alpha / rank"
    """How the scaling is computed."""
    indices: tuple[int, ...] = ()
    """See Terms."""
    parameter: str = "weight"
    """The module's parameter that is updated."""
    dtype: str = "F32"
    """Of the base tensor; a library may round to it between two steps."""
    start: int = 0
    """The row of the update's matrix at which this tensor begins.

    Above 0 if the base stores the parameter in several tensors.
    """
    held: str = ""
    """The dtype to which the library rounds the factors when it loads them; "" for no rounding.

    If there is a projection, only that is rounded.
    """
    loaded: str = ""
    """The dtype in which the library holds factors that the file stores in a wider one, or ""."""
    projection: tuple[int, ...] = ()
    """(seed, rows of B, columns of A) of a shared projection that is drawn anew, or ()."""
    heads: tuple[int, ...] = ()
    """(heads of the query, groups of key and value) of litgpt's fused weight, or ()."""
    by_group: bool = False
    """Whether the rows of that weight lie group by group."""
