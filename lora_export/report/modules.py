"""The wrong modules of a merge as a table: the factor of the update that each one holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import WIDTH, counted, first_rows
from lora_export.shown import shown_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADING = ("module", "factor", "cosine", "what was found")


def modules_text(modules: Sequence[Mapping[str, Any]], *, verbose: bool, width: int = WIDTH) -> str:
    """Return one line for each wrong module; empty where there are none.

    Args:
        modules: the fact "modules" of a report; see docs/json.md.
        verbose: list all modules, and not only the first ones.
        width: characters of a line.
    """
    if not modules:
        return ""
    rows = [module_cells(row) for row in modules]
    lines = first_rows(rows, verbose=verbose, heading=HEADING, width=width)
    return shown_lines([modules_title(modules), *lines])


def modules_title(modules: Sequence[Mapping[str, Any]]) -> str:
    """Return what the table of wrong modules shows."""
    return f"{counted(len(modules), 'module')} with another weight than planned (by sampled rows)"


def module_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the cells of one wrong module, in plain text; see HEADING."""
    factors = ", ".join(f"{factor:.4g}" for factor in row["factors"])
    cosine = "" if row["cosine"] is None else f"{row['cosine']:.3f}"
    return row["module"], factors, cosine, row["what"]
