"""The figures of tests/hostile in a few lines, whichever worker ran what."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def told(properties: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the lines to print; none where no malformed input was read.

    properties: (name, value) as tests recorded them.
    """
    malformed: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    fuzzed: Counter[str] = Counter()
    for name, value in properties:
        if name == "hostile cases":
            malformed.update(value["malformed"])
            odd.update(value["right"])
        elif name == "hostile fuzz":
            kind = value["kind"]
            fuzzed.update({kind: value["examples"]})
            fuzzed.update({f"{kind} {what}": value[what] for what in ("accepted", "beyond")})
    if not malformed and not fuzzed:
        return []
    lines = []
    if malformed:
        groups = ", ".join(f"{name} {count}" for name, count in sorted(malformed.items()))
        right = f"; {odd.total()} odd ones that are right"
        lines.append(f"hostile: {malformed.total():,} malformed inputs: {groups}{right}")
    kinds = [kind for kind in ("headers", "pickles", "adapters") if fuzzed[kind]]
    if kinds:
        parts = ", ".join(
            f"{kind} {fuzzed[kind]:,} ({fuzzed[f'{kind} accepted']:,} accepted, of which "
            f"{fuzzed[f'{kind} beyond']:,} the reference refuses)"
            for kind in kinds
        )
        total = sum(fuzzed[kind] for kind in kinds)
        lines.append(f"hostile: {total:,} fuzzed inputs: {parts}")
    # A test with any of these fails, and its figures are not among these.
    lines.append("hostile: 0 accepted, 0 tracebacks, 0 over limits")
    return lines
