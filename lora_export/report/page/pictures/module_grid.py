"""Puts the updates of a model in order: by layer, the number in a name, and by kind of module."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_KINDS = 24
"""Rows of the grid; the kinds with the largest updates are shown."""

MOST_COLUMNS = 160
"""Columns of the grid; in a deeper model several layers share one."""

_PARAMETERS = frozenset({"weight"})
"""Last parts of a tensor's name that say nothing."""


@dataclass(slots=True)
class Cell:
    """The updates of one kind of module in one layer, or of one module of its own."""

    names: list[str]
    """Of the tensors."""
    update: float = 0.0
    """The sum of the squares of their updates."""
    weight: float = 0.0
    """The sum of the squares of their weights."""

    def add(self, name: str, update: float, weight: float) -> None:
        """Add a tensor, by the norms of its update and its weight."""
        self.names.append(name)
        self.update += update * update
        self.weight += weight * weight

    def join(self, other: Cell) -> None:
        """Add all that another cell has."""
        self.names += other.names
        self.update += other.update
        self.weight += other.weight

    @property
    def share(self) -> float:
        """Return the norm of the update by that of the weight; infinite beside a zero weight."""
        if self.weight:
            return sqrt(self.update / self.weight)
        return inf if self.update else 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the grid: modules of one kind, such as `self_attn.q_proj`."""

    name: str
    cells: Mapping[int, Cell]
    """By column."""


@dataclass(frozen=True, slots=True)
class ModuleGrid:
    """All updates of a model."""

    kinds: tuple[Kind, ...]
    """In the order of the model; empty for a model without numbered layers."""
    layers: tuple[tuple[int, int], ...]
    """The first and the last layer of each column."""
    others: tuple[tuple[str, Cell], ...]
    """Modules outside of the layers, by name, in the order of the model."""
    idle: tuple[str, ...]
    """The names of all tensors whose update is zero."""
    tensors: int
    """How many tensors have an update, zero or not."""
    left_out: int = 0
    """How many kinds the grid has no row for."""

    def shares(self) -> list[float]:
        """Return the relative size of every update that is shown."""
        rows = [cell.share for kind in self.kinds for cell in kind.cells.values()]
        return rows + [cell.share for _, cell in self.others]


def module_grid(sizes: Mapping[str, Mapping[str, Any]]) -> ModuleGrid:
    """Return the grid of the fact `update_sizes` of a report.

    The layer is the first number in a tensor's name. All other numbers are left out of the kind, so
    the experts of a layer share a cell.
    """
    table: dict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
    others: dict[str, Cell] = {}
    for name, entry in sizes.items():
        stack, layer, kind = _place(name)
        if layer is None:
            cell = others.setdefault(kind, Cell([]))
        else:
            cell = table[stack, kind].setdefault(layer, Cell([]))
        cell.add(name, float(entry["update"]), float(entry["weight"]))
    if not any(len(cells) > 1 for cells in table.values()):
        # Layers without a kind in common are no grid: each module stands for itself.
        for cells in table.values():
            others |= {_short(cell.names[0]): cell for cell in cells.values()}
        table.clear()
    idle = tuple(name for name, entry in sizes.items() if not entry["update"])
    kinds, columns, left_out = _laid_out(table)
    return ModuleGrid(kinds, columns, tuple(others.items()), idle, len(sizes), left_out)


def _laid_out(
    table: Mapping[tuple[str, str], dict[int, Cell]],
) -> tuple[tuple[Kind, ...], tuple[tuple[int, int], ...], int]:
    """Return the rows of the grid, the layers of its columns, and how many kinds have no row."""
    order = sorted(table, key=lambda key: -max(cell.share for cell in table[key].values()))
    shown = set(order[:MOST_KINDS])
    numbers = sorted({layer for key in shown for layer in table[key]})
    columns = _columns(numbers)
    each = -(-len(numbers) // len(columns)) if columns else 1
    place = {layer: at // each for at, layer in enumerate(numbers)}
    named = len({stack for stack, _ in shown}) > 1
    kinds = []
    for stack, kind in (key for key in table if key in shown):
        cells: dict[int, Cell] = {}
        for layer, cell in sorted(table[stack, kind].items()):
            cells.setdefault(place[layer], Cell([])).join(cell)
        kinds.append(Kind(f"{stack}: {kind}" if named else kind, cells))
    return tuple(kinds), columns, len(order) - len(shown)


def _columns(layers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the layers of each column, one a column where there are not too many."""
    each = -(-len(layers) // MOST_COLUMNS) or 1
    parts = [layers[at : at + each] for at in range(0, len(layers), each)]
    return tuple((part[0], part[-1]) for part in parts)


def _place(name: str) -> tuple[str, int | None, str]:
    """Return (the stack of layers, the layer, the kind) of a tensor; no layer without a number."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] in _PARAMETERS:
        parts = parts[:-1]
    at = next((at for at, part in enumerate(parts) if _is_number(part)), None)
    if at is None:
        return "", None, ".".join(parts)
    kind = ["*" if _is_number(part) else part for part in parts[at + 1 :]]
    return ".".join(parts[:at]), int(parts[at]), ".".join(kind) or ".".join(parts[:at]) or "module"


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 6


def _short(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:-1]) if len(parts) > 1 and parts[-1] in _PARAMETERS else name
