"""Rows with a name, a bar and a value: sizes, shares, what is left."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from lora_export.report.page.escape import code, html

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Bar:
    """One row."""

    name: str
    share: float
    """The length, from 0 to 1; a longer one is drawn as 1."""
    value: str
    """What is written beside it."""
    kind: str = "info"
    """The class of its colour: "info", "ok", "bad", "limit", "effect", "noise"."""
    is_code: bool = True
    """Whether the name comes from a file, and is shown as code."""


def bar_rows(rows: Sequence[Bar]) -> str:
    """Return the rows as a table without a heading."""
    return f'<table class="bars"><tbody>{"".join(map(_row, rows))}</tbody></table>'


def _row(row: Bar) -> str:
    name = code(row.name, 64) if row.is_code else html(row.name)
    return (
        f'<tr><th scope="row">{name}</th><td class="draw">{bar(row.share, row.kind)}</td>'
        f'<td class="number">{html(row.value)}</td></tr>'
    )


def bar(share: float, kind: str, label: str = "") -> str:
    """Return a bar as an svg element. label: what a reader without eyes needs; empty hides it."""
    length = 100 * min(max(share, 0.0), 1.0) if isfinite(share) else 100.0
    seen = f'role="img" aria-label="{html(label)}"' if label else 'aria-hidden="true"'
    filled = f'<rect class="fill {kind}" width="{length:.4g}%" height="8" rx="2"/>'
    return (
        f'<svg class="gauge" {seen} width="100%" height="8">'
        f'<rect class="rest" width="100%" height="8" rx="2"/>{filled if length else ""}</svg>'
    )
