"""The update of stacked experts, by the layout of PEFT's factors: no reshape, no einsum."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def experts(delta: Delta, factors: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Expert e has rows e*r to (e+1)*r of A, and every column of B whose number is e modulo E."""
    import torch

    a, b = factors["A"], factors["B"]
    count = len(a) // delta.rank
    height = a.shape[1] if delta.fan_in_fan_out else len(b)
    places = rows + delta.start
    found = a.new_empty(len(rows), len(b) if delta.fan_in_fan_out else a.shape[1])
    for expert in torch.unique(places // height).tolist():
        mine = places // height == expert
        inside = places[mine] - expert * height
        down, up = a[expert * delta.rank : (expert + 1) * delta.rank], b[:, expert::count]
        found[mine] = down[:, inside].T @ up.T if delta.fan_in_fan_out else up[inside] @ down
    return found
