"""The update recomputed from its definition, on its own path: it shares no code with the merge.

Formulas of loralib 0.1.2's and PEFT 0.21.2's layers, for chosen rows of the update's matrix and in
any dtype. A sum of products of factors is a formula of its own; what depends on the weight, a
change.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_export.verification import (
    expected_attention,
    expected_dora,
    expected_tuners,
    fused_qkv,
    token_rows,
)
from lora_export.verification.expected_experts import experts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from lora_export.records import Delta

    Factors = Mapping[str, torch.Tensor]
    Formula = Callable[[Delta, Factors, torch.Tensor], torch.Tensor]
    Sides = Callable[[Delta, Factors], tuple[torch.Tensor, torch.Tensor]]
    ChangeFormula = Callable[
        [Delta, Factors, float, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
    ]


def scaling_of(delta: Delta) -> float:
    """The scaling by the library's rule, computed anew, times the user's weight."""
    match delta.rule:
        case "alpha / rank":
            return delta.alpha / delta.rank * delta.weight
        case "alpha / rank in float32":
            return _single(delta.alpha / delta.rank) * delta.weight
        case "alpha / sqrt(rank)":
            return delta.alpha / math.sqrt(delta.rank) * delta.weight
        case "alpha / (rank + 1e-5)":
            return delta.alpha / (delta.rank + 1e-5) * delta.weight
        case "1":
            return delta.weight


def _single(value: float) -> float:
    import torch

    return float(torch.tensor(value, dtype=torch.float32))


def _linear_sides(delta: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    turned = delta.fan_in_fan_out
    return _turned_sides(delta, factors) if turned else _stored_sides(delta, factors)


def _turned_sides(_: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    return factors["A"].T, factors["B"].T


def _stored_sides(_: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution's matrix, (out//groups*k, in*k), has the kernel's elements in their order."""
    return factors["B"], factors["A"]


def _product_of(sides: Sides) -> Formula:
    def formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
        left, right = sides(delta, factors)
        return left[rows] @ right

    return formula


SIDES: dict[str, Sides] = {
    "linear": _linear_sides,
    "embedding": _turned_sides,
    "conv": _stored_sides,
    "attention_in": _stored_sides,
}
"""The two matrices whose product the unscaled update is, for kinds where it is one product."""

_linear, _embedding = _product_of(_linear_sides), _product_of(_turned_sides)


def _peft_conv(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """B is 1 x 1, so one convolution after the other is a product over the rank."""
    a, b = factors["A"], factors["B"]
    return b.reshape(b.shape[:2])[rows] @ a.reshape(len(a), -1)


def _lora_bias(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    return factors["bias"][rows].reshape(-1, 1)


def _merged_linear(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Block by block: the i-th enabled block is B[i*o:(i+1)*o] @ A[i*r:(i+1)*r]."""
    import torch

    a, b = factors["A"], factors["B"]
    size = b.shape[0] // sum(delta.enable_lora)
    if delta.fan_in_fan_out:
        nothing = b.new_zeros(len(rows), size)
        parts = [
            nothing if a_block is None else a_block[:, rows].T @ b_block.T
            for a_block, b_block in _blocks(delta, a, b, size)
        ]
        return torch.cat(parts, dim=1)
    update = b.new_zeros(len(rows), a.shape[1])
    for place, (a_block, b_block) in enumerate(_blocks(delta, a, b, size)):
        if a_block is not None:
            inside = (rows >= place * size) & (rows < (place + 1) * size)
            update[inside] = b_block[rows[inside] - place * size] @ a_block
    return update


def _blocks(
    delta: Delta, a: torch.Tensor, b: torch.Tensor, size: int
) -> list[tuple[torch.Tensor | None, torch.Tensor]]:
    """The factors of every block; (None, ...) for a disabled one."""
    found: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    done = 0
    for enabled in delta.enable_lora:
        left = b[done * size : (done + 1) * size]
        found.append((a[done * delta.rank : (done + 1) * delta.rank] if enabled else None, left))
        done += enabled
    return found


FORMULAS: dict[str, Formula] = {
    **{kind: _product_of(sides) for kind, sides in SIDES.items()},
    "merged_linear": _merged_linear,
    "litgpt_qkv": fused_qkv.update_rows,
    "peft_conv": _peft_conv,
    "lora_bias": _lora_bias,
    "experts": experts,
    "adalora": expected_tuners.adalora,
    "loha": expected_tuners.loha,
    "lokr": expected_tuners.lokr,
    "vera": expected_tuners.vera,
}
"""One formula a layer kind: the unscaled update, given the chosen rows' numbers."""

_dora_linear = expected_dora.formulas(_linear)
_dora_embedding = expected_dora.formulas(_embedding, by_column=True)
_dora_conv = expected_dora.formulas(_peft_conv)

CHANGES: dict[str, ChangeFormula] = {
    "dora_linear": _dora_linear[0],
    "dora_embedding": _dora_embedding[0],
    "dora_conv": _dora_conv[0],
    "attention_out": expected_attention.out_change,
    "ia3": expected_tuners.ia3,
    "ia3_feedforward": expected_tuners.ia3_feedforward,
    "token_rows": token_rows.change,
}
"""For a kind that has a change and no product: (delta, factors, scaling, rows of the base in
float64, their numbers) -> (new rows less the base's, magnitude), where magnitude times the share of
verification.weights.rounding.update_error bounds the error of the computed update. A test holds the
keys of both tables against the kinds."""

TANGENTS: dict[str, ChangeFormula] = {
    "dora_linear": _dora_linear[1],
    "dora_embedding": _dora_embedding[1],
    "dora_conv": _dora_conv[1],
    "attention_out": expected_attention.out_tangent,
}
"""For a change that is not proportional to its scaling, or whose errors mostly go either way: what
it moves by with the scaling, and the magnitude of the errors that may go along with that."""

COMPLETED: dict[str, Callable[[Delta, Factors], Factors]] = {
    "vera": expected_tuners.with_projection
}
"""For a kind that takes factors which the file leaves out: these and those of the file."""


LONG = frozenset({"linear", "embedding"})
"""Kinds of which a factor may be as long as a table, half a million rows and more."""


def needed_for(delta: Delta, factors: Factors, rows: torch.Tensor) -> tuple[Factors, torch.Tensor]:
    """What a formula needs of the factors for these rows, in float64, and the rows' numbers in it.

    A factor of the LONG kinds is not to be copied whole for each block.
    """
    import torch

    if delta.kind not in LONG:
        return factors, rows
    a, b = factors["A"], factors["B"]
    if delta.kind == "linear" and not delta.fan_in_fan_out:
        b = b[rows]
    else:
        a = a[:, rows]
    return {"A": a.double(), "B": b.double()}, torch.arange(len(rows))


def factors_of(delta: Delta, *, exact: bool, narrow: bool = False) -> Factors:
    """All factors of an update in float64, rounded as the library holds them.

    narrow: those of the LONG kinds in float32, where that holds their values as well.
    """
    import torch

    from lora_export.checkpoint.tensors import read_tensor, torch_dtype

    read = {role: read_tensor(ref) for role, ref in delta.factors.items()}
    loaded = delta.held if delta.held and not delta.projection else delta.loaded
    if loaded and not exact:
        read = {role: factor.to(torch_dtype(loaded)) for role, factor in read.items()}
    if narrow and delta.kind in LONG:
        return {r: f.to(torch.promote_types(f.dtype, torch.float32)) for r, f in read.items()}
    wide = {role: factor.double() for role, factor in read.items()}
    complete = COMPLETED.get(delta.kind)
    return complete(delta, wide) if complete else wide


def changes_nothing(delta: Delta) -> bool:
    """Whether the update is a product with a factor of zeros, as of a layer never trained."""
    from lora_export.checkpoint.tensors import read_tensor

    is_product = delta.kind in FORMULAS
    return is_product and any(not read_tensor(ref).any() for ref in delta.factors.values())


SCREENED = frozenset({*SIDES, "merged_linear", "litgpt_qkv"})
"""Kinds whose update is made of A and B, which half-precision weights are screened with."""
