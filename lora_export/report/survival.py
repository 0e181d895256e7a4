"""What storing left of the updates, as data and as words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import counted
from lora_export.shown import shown_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import KeptEffect, KeptUpdate, Survival

_NOTED = 0.9
"""The share of an update below which a note names the dtypes that would keep more."""

_DIGITS = 6
"""Of a share, so that the manifest does not depend on the order in which threads add up."""

_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def survival_facts(survival: Survival | None) -> dict[str, Any]:
    """Return the entry of report and manifest; empty where nothing was measured."""
    if survival is None:
        return {}
    entry = {
        "dtypes": [_NAMES[dtype] for dtype in survival.dtypes],
        **_shares(survival.whole, others=True),
        "note": _note(survival),
        "tensors": {
            name: _shares(kept, others=kept.share < _NOTED)
            for name, kept in survival.tensors.items()
        },
    }
    return {"survival": entry}


def size_facts(survival: Survival | None) -> dict[str, Any]:
    """Return the entry of a report on the size of every update; empty where none was measured.

    It has the Frobenius norms of the update and of the base's tensor, by the tensor's name.
    """
    if survival is None:
        return {}
    sizes = {
        name: {"update": _significant(size.update), "weight": _significant(size.weight)}
        for name, size in survival.sizes.items()
    }
    return {"update_sizes": sizes}


def _significant(norm: float) -> float:
    """Round a norm, so that it does not depend on the order in which threads add up."""
    return float(f"{norm:.{_DIGITS}g}")


def _shares(kept: KeptUpdate, *, others: bool) -> dict[str, Any]:
    """Return the shares of one tensor or of all. others: with those of more precise dtypes."""
    more = {_NAMES[dtype]: round(share, _DIGITS) for dtype, share in kept.otherwise.items()}
    shares = {"share": round(kept.share, _DIGITS), "moved": round(kept.moved, _DIGITS)}
    return {**shares, **({"otherwise": more} if others and more else {})}


def survival_lines(entry: Mapping[str, Any]) -> list[str]:
    """Return one line on all updates, and the note where there is one."""
    moved = _percent(entry["moved"])
    all_moved = "every element" if moved == "all" else f"{moved} of the elements"
    line = f"{survival_words(entry)}; {all_moved} moved"
    return [line, f"  note: {entry['note']}"] if entry["note"] else [line]


def stored_text(entry: Mapping[str, Any] | None, kept: KeptEffect | None) -> str:
    """Return what storing left of the updates, and of their effect on the outputs.

    The two shares are of different things: of the size of the update in the weights, and of how far
    the outputs move.
    """
    weights = survival_lines(entry) if entry else []
    outputs = [f"{kept} (the least is of {kept.output})"] if kept else []
    if weights and outputs:
        return shown_lines([f"weights  {weights[0]}", *weights[1:], f"outputs  {outputs[0]}"])
    return shown_lines([*weights, *outputs])


def kept_words(entry: Mapping[str, Any] | None) -> str:
    """Return what rounding kept of the updates, after a comma; empty where it kept all."""
    if entry is None or not set(entry["dtypes"]) & {"bfloat16", "float16"}:
        return ""
    rounded = f", rounded to {' and '.join(entry['dtypes'])}"
    if entry["share"] <= 0:
        return f"{rounded}, which moves the weights as far as the adapter does"
    share = _percent(entry["share"])
    return rounded if share == "all" else f"{rounded}, which keeps {share} of the update"


def survival_warnings(survival: Survival | None) -> tuple[str, ...]:
    """Return a warning where a note says that much of the update is lost; else none."""
    entries = survival_facts(survival).values()
    return tuple(f"{survival_words(e)}: {e['note']}" for e in entries if e["note"])


def survival_words(entry: Mapping[str, Any]) -> str:
    """Return how much of the updates is left, as a clause without a full stop."""
    dtypes = " and ".join(entry["dtypes"])
    if entry["share"] <= 0:
        return f"stored in {dtypes}, rounding moves the weights as far as the adapter does"
    share = _percent(entry["share"])
    left = "the whole update survives" if share == "all" else f"{share} of the update survives"
    return f"stored in {dtypes}, {left}"


def _note(survival: Survival) -> str:
    """Return the note on a share below 90 %, of all tensors or of some; empty where none is."""
    whole, tensors = survival.whole, survival.tensors
    if whole.share < _NOTED:
        return _other_dtypes(whole, "")
    low = {name: kept for name, kept in tensors.items() if kept.share < _NOTED}
    if not low:
        return ""
    name, worst = min(low.items(), key=lambda item: item[1].share)
    left = f"{_percent(worst.share)} in {name}"
    number = f"{len(low):,} of {counted(len(tensors), 'tensor')}"
    more = _other_dtypes(worst, " there")
    return f"less than 90% survives in {number}, {left}; {more}"


def _other_dtypes(kept: KeptUpdate, there: str) -> str:
    """Return how much other dtypes would keep, the one with fewer bits first."""
    better = {_NAMES[d]: share for d, share in kept.otherwise.items() if share > kept.share}
    if not better:
        return "no dtype of fewer than 64 bits would keep more"
    [first, *rest] = better
    listed = [f"{first} would keep {_percent(better[first])}{there}"]
    listed += [f"{name} {_percent(better[name])}" for name in rest]
    enough = next((name for name in better if better[name] >= _NOTED), [*better][-1])
    return f"{', '.join(listed)} (merge --dtype {enough})"


def _percent(share: float) -> str:
    """Return a share in percent, with as many digits as show that it is not 100; else "all"."""
    for digits in (1, 2, 3):
        text = f"{max(share, 0.0):.{digits}%}"
        if not text.startswith("100."):
            return text
    return "all"
