"""The relative size of every update by layer and kind of module: it shows what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log
from typing import TYPE_CHECKING

from lora_export.report.columns import counted, first_names
from lora_export.report.page.escape import code, html
from lora_export.report.page.measures import share_of_weight
from lora_export.report.page.pictures.bars import Bar, bar_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.report.page.pictures.module_grid import Cell, Kind, ModuleGrid

STEPS = 7
"""Colours of the map, from the smallest update to the largest; a zero has one of its own."""

_MOST_TITLES = 1_100
"""Cells that have a text of their own; more would make the page too large."""

_MOST_BARS = 16
"""Modules outside of layers that are listed."""

_MOST_NUMBERS = 12
"""Columns that have a number each: so many fit on a phone."""

_COARSE = 40
"""Columns above which no lines are drawn between cells: on a phone they would be all one sees."""


@dataclass(frozen=True, slots=True)
class _Colours:
    """Which colour a relative size has: by its logarithm, between the smallest and the largest."""

    least: float
    most: float

    def of(self, share: float) -> str:
        """Return the class of a cell."""
        if share == 0:
            return "none"
        if not isfinite(share) or self.most <= self.least:
            return f"h{STEPS - 1}"
        step = int(STEPS * log(share / self.least) / log(self.most / self.least))
        return f"h{min(max(step, 0), STEPS - 1)}"


def heat_map(grid: ModuleGrid) -> str:
    """Return the map and the modules outside of it as HTML; empty where there is no update."""
    shares = [share for share in grid.shares() if share > 0 and isfinite(share)]
    colours = _Colours(min(shares, default=0.0), max(shares, default=0.0))
    parts: list[str] = []
    if grid.kinds:
        cells = sum(len(kind.cells) for kind in grid.kinds)
        rows = [_row(kind, grid, colours, titled=cells <= _MOST_TITLES) for kind in grid.kinds]
        parts += ['<div class="map">', *rows, _layers(grid), "</div>", _legend(colours)]
    if grid.left_out:
        parts.append(f"<p>{counted(grid.left_out, 'kind')} with smaller updates left out.</p>")
    if grid.others:
        parts += ["<h3>Outside of the layers</h3>"] if grid.kinds else []
        parts.append(_others(grid))
    return "".join(parts)


def _row(kind: Kind, grid: ModuleGrid, colours: _Colours, *, titled: bool) -> str:
    shares = [cell.share for cell in kind.cells.values()]
    label = f"{kind.name}: {_range(shares)} in {counted(len(shares), 'layer')}"
    cells = _cells(kind, grid, colours, titled=titled)
    fine = ' class="fine"' if len(grid.layers) > _COARSE else ""
    return (
        f'<div class="kind">{code(kind.name, 48)}</div>'
        f'<svg{fine} role="img" width="100%" height="22" aria-label="{html(label)}">'
        f"{''.join(cells)}</svg>"
    )


def _cells(kind: Kind, grid: ModuleGrid, colours: _Colours, *, titled: bool) -> Iterator[str]:
    width = 100 / len(grid.layers)
    for column, cell in kind.cells.items():
        place = f'x="{column * width:.4g}%" width="{width:.3g}%" height="22"'
        shape = f'<rect class="{colours.of(cell.share)}" {place}'
        yield (
            f"{shape}><title>{_title(cell, grid.layers[column])}</title></rect>"
            if titled
            else f"{shape}/>"
        )


def _title(cell: Cell, layers: tuple[int, int]) -> str:
    """Return layer and size in words; the kind stands beside the row."""
    first, last = layers
    place = f"layer {first}" if first == last else f"layers {first} to {last}"
    number = f", {len(cell.names):,} tensors" if len(cell.names) > 1 else ""
    return f"{place}: {share_of_weight(cell.share)}{number}"


def _layers(grid: ModuleGrid) -> str:
    """Return the numbers below the map: of every column, or of the first and the last one."""
    firsts = [first for first, _ in grid.layers]
    is_each = len(firsts) <= _MOST_NUMBERS
    shown = firsts if is_each else [firsts[0], firsts[len(firsts) // 2], grid.layers[-1][1]]
    numbers = "".join(f"<span>{number}</span>" for number in shown)
    return (
        '<div class="kind note">layer</div>'
        f'<div class="layers note{" each" if is_each else ""}">{numbers}</div>'
    )


def _legend(colours: _Colours) -> str:
    if not colours.most:
        return ""
    width = 100 / STEPS
    squares = [
        f'<rect class="h{step}" x="{step * width:.4g}%" width="{width:.4g}%" height="12"/>'
        for step in range(STEPS)
    ]
    least, most = share_of_weight(colours.least), share_of_weight(colours.most)
    label = html(f"colours from {least} to {most}")
    return (
        f'<div class="legend note"><div><span>{least}</span>'
        f'<svg role="img" width="112" height="12" aria-label="{label}">'
        f"{''.join(squares)}</svg><span>{most} of the weight</span></div>"
        '<div><svg role="img" width="14" height="12" aria-label="no update">'
        '<rect class="none" width="14" height="12"/></svg><span>no update</span></div></div>'
    )


def _others(grid: ModuleGrid) -> str:
    largest = max((c.share for _, c in grid.others if isfinite(c.share)), default=0.0) or 1.0
    rows = [
        Bar(name, cell.share / largest, share_of_weight(cell.share), "effect")
        for name, cell in grid.others[:_MOST_BARS]
    ]
    more = len(grid.others) - len(rows)
    tail = f'<p class="note">and {counted(more, "module")} more</p>' if more else ""
    return f"{bar_rows(rows)}{tail}"


def size_words(grid: ModuleGrid) -> str:
    """Return what the map shows, in sentences of plain text: whether every module was trained."""
    moved = [share for share in grid.shares() if share > 0]
    if not moved:
        return "No update changes a weight: nothing was trained."
    whole = f"The updates are {_range(moved)} of their weights, by the Frobenius norm."
    if grid.idle:
        number = f"{len(grid.idle):,} of {counted(grid.tensors, 'adapted tensor')}"
        return f"{whole} {number} {_has(grid.idle)} no update: {first_names(grid.idle)}."
    return f"{whole} Each of {counted(grid.tensors, 'adapted tensor')} has one."


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _range(shares: list[float]) -> str:
    least, most = share_of_weight(min(shares)), share_of_weight(max(shares))
    return least if least == most else f"{least} to {most}"
