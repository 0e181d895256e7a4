"""The size and the loss of a file in a lower precision, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import WIDTH, counted, first_names, laid_out
from lora_export.shown import shown_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHOWN = 3

TOUCHED = 1e-5
"""The largest effect, as a share of an output's size, of an adapter that does not change it."""

TOUCHED_ONCE = 1e-4
"""The same for a single element: an adapter may move one score of thousands, and no mean."""


def lowered_facts(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts of files in a lower precision for the report.

    One file is `lowered`. Several are the list `precisions`.

    made: the facts of each file, with `lowered`.
    """
    if len(made) > 1:
        return {"precisions": [facts["lowered"] for facts in made]}
    return dict(made[0]) if made else {}


def all_lowered(facts: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the facts of each file in a lower precision; see `lowered_facts`."""
    one = [facts["lowered"]] if "lowered" in facts else []
    return [*one, *facts.get("precisions", ())]


def is_touched(loss: Mapping[str, Any]) -> bool:
    """Return whether the adapter changes an output by more than rounding noise.

    loss: as of verification.model.loss.Loss.
    """
    size, farthest = loss.get("size", 0.0), loss.get("farthest", 0.0)
    return bool(loss["effect"] > TOUCHED * size or farthest > TOUCHED_ONCE * size)


def share_of_effect(loss: Mapping[str, Any]) -> float | None:
    """Return what rounding moves an output by, as a share of the adapter's effect.

    None where the adapter does not change the output.
    """
    return loss["rms"] / loss["effect"] if loss["effect"] and is_touched(loss) else None


def lowered_text(lowered: Mapping[str, Any], *, verbose: bool, width: int = WIDTH) -> str:
    """Return the size beside float32's, the rounded weights, and how far the outputs moved."""
    now, before = lowered["bytes"], lowered["float32_bytes"]
    lines = [
        f"precision {lowered['precision']}: {lowered['words']}",
        f"  {now:,} bytes, {now / before:.0%} of the {before:,} of float32",
    ]
    lines += _codes(lowered)
    if "rounded" in lowered:
        lines += _weights("rounded", lowered["rounded"], verbose=verbose)
        lines += _weights("left in float32", lowered["kept"], verbose=verbose)
    if loss := lowered.get("loss"):
        lines += laid_out([_HEAD, *map(_row, loss)], width)
    return shown_lines(lines)


def _codes(lowered: Mapping[str, Any]) -> Sequence[str]:
    """Return how the codes of int8 are stored, and on which processors they are right."""
    if lowered.get("codes") == "signed":
        return ["  signed codes: x86 processors without VNNI may overflow (--int8 unsigned)"]
    if lowered.get("codes") == "unsigned":
        return ["  unsigned codes: right everywhere, slower where a processor has VNNI"]
    return []


def _weights(title: str, table: Mapping[str, Mapping[str, int]], *, verbose: bool) -> Sequence[str]:
    before = sum(entry["float32"] for entry in table.values())
    now = sum(entry["bytes"] for entry in table.values())
    size = f"{before:,} bytes" if before == now else f"{before:,} bytes to {now:,}"
    names = list(table)
    listed = f": {first_names(names, len(names) if verbose else _SHOWN)}" if names else ""
    return [f"  {title}: {counted(len(names), 'weight')}, {size}{listed}"]


_HEAD = ("output", "largest error", "rms", "of its size", "of the adapter's effect", "arg-max")


def _row(loss: Mapping[str, Any]) -> Sequence[str]:
    share = share_of_effect(loss)
    return (
        loss["output"],
        f"{loss['worst']:.2g}",
        f"{loss['rms']:.2g}",
        f"{loss['relative']:.2%}",
        "the adapter has none" if share is None else f"{share:.2%}",
        f"agrees in {loss['agree']:,} of {loss['places']:,} places" if loss["places"] else "",
    )
