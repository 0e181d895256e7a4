"""The sizes of a projection that is drawn anew: those of the largest module of its adapter.

PEFT 0.21.2, tuners.vera.model, VeraModel._find_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, Delta

_HINT = "train or save the adapter with save_projection=True, which stores what is drawn"


def size_projection(draft: Draft, adapter: Adapter) -> None:
    """Complete the projection of every update of `adapter` that has only its seed."""
    path = str(adapter.path)
    seeded = [
        update for update in adapter.updates if update.terms and update.terms.seed is not None
    ]
    if not seeded or draft.unfit or draft.missing:
        return
    mine = {
        name: [delta for delta in deltas if delta.adapter == path and delta.projection]
        for name, deltas in draft.merged.items()
    }
    deltas = [delta for listed in mine.values() for delta in listed]
    if len({delta.module for delta in deltas}) != len(seeded):
        message = "the projection is not saved, and its sizes need every module of the adapter"
        draft.unfit.append(Problem(message, path, _HINT))
        return
    if len({delta.held for delta in deltas}) > 1:
        message = (
            "the projection is not saved, and the base's dtypes differ: PEFT rounds it by turns"
        )
        draft.unfit.append(Problem(message, path, _HINT))
        return
    sizes = [_sizes(delta) for delta in deltas]
    rows, columns = max(out for out, _ in sizes), max(in_ for _, in_ in sizes)
    for listed in draft.merged.values():
        listed[:] = [
            replace(delta, projection=(*delta.projection, rows, columns))
            if delta.adapter == path and delta.projection
            else delta
            for delta in listed
        ]


def _sizes(delta: Delta) -> tuple[int, int]:
    """(out, in) of the module."""
    rows, columns = delta.shape
    return (columns, rows) if delta.fan_in_fan_out else (rows, columns)
