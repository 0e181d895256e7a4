"""The sizes of a projection that is drawn from its seed: those of the adapter's largest module.

Reproduces PEFT 0.21.2, tuners.vera.model, VeraModel._find_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.planning.findings import Findings
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Adapter, Delta

_HINT = "train or save the adapter with save_projection=True, which stores what is drawn"


def size_projection(adapter: Adapter, changes: TensorChanges, findings: Findings) -> None:
    """Add rows and columns to the projection of every update of `adapter` that has a seed.

    All updates must be entered already, since the largest one decides the size of all.
    """
    path = str(adapter.path)
    seeded = [
        update for update in adapter.updates if update.terms and update.terms.seed is not None
    ]
    if not seeded or findings.has_problems:
        return
    deltas = [one for one in changes.deltas() if one.adapter == path and one.projection]
    if len({delta.module for delta in deltas}) != len(seeded):
        message = "the projection is not saved, and its sizes need every module of the adapter"
        findings.unfit.append(Problem(message, path, _HINT, cause="fit/projection"))
        return
    if len({delta.held for delta in deltas}) > 1:
        message = (
            "the projection is not saved, and the base's dtypes differ: PEFT rounds it by turns"
        )
        findings.unfit.append(Problem(message, path, _HINT, cause="fit/projection"))
        return
    sizes = [_sizes(delta) for delta in deltas]
    rows, columns = max(out for out, _ in sizes), max(in_ for _, in_ in sizes)
    for listed in changes.merged.values():
        listed[:] = [
            replace(delta, projection=(*delta.projection, rows, columns))
            if delta.adapter == path and delta.projection
            else delta
            for delta in listed
        ]


def _sizes(delta: Delta) -> tuple[int, int]:
    """Return (out, in) of the module."""
    rows, columns = delta.shape
    return (columns, rows) if delta.fan_in_fan_out else (rows, columns)
