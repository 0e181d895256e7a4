"""The four sizes that decide a proof by outputs, and the words for sizes on a page."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite, isnan, log10
from typing import TYPE_CHECKING, Any

from lora_export.report.sentences import percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Check
    from lora_export.report.result import Report

_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = (1e-3, 1e5)
"""From where to where a size is written without a power of ten."""

_LEAST = 0.01
"""The smallest percentage that is written so."""


_OFTEN = 10
"""The share from which on it is a number of times, and no percentage."""


@dataclass(frozen=True, slots=True)
class Measures:
    """How far two models are apart in one output, beside what that means; all in its unit."""

    output: str
    noise: float
    """The largest distance of runs that are equally right."""
    error: float
    """The largest distance of the result to the unmerged model."""
    allowed: float
    """The largest error that passes."""
    effect: float
    """The largest distance of the result to the base without the adapter."""
    check: str = ""
    """The name of the check that measured the error."""

    @property
    def passed(self) -> bool:
        """Return whether the error is within what is allowed; a NaN is not."""
        return self.error <= self.allowed


def measures_of(report: Report) -> Measures | None:
    """Return the sizes of the output whose error is the largest share of what is allowed.

    It is None where no model was run, and so no output was compared.
    """
    noise: list[Mapping[str, Any]] = list(report.facts.get("noise", ()))
    compared = [
        check
        for check in report.checks
        if check.level in ("model", "runtime") and not check.at_least and check.tolerance > 0
    ]
    if not noise or not compared:
        return None
    worst = max(compared, key=_share)
    found = next((one for one in noise if one["output"] == _output_of(worst)), noise[0])
    return Measures(
        str(found["output"]),
        noise=float(found["noise"]),
        error=worst.worst,
        allowed=worst.tolerance,
        effect=float(found["effect"]),
        check=worst.name,
    )


def _share(check: Check) -> float:
    share = check.worst / check.tolerance
    return float("inf") if isnan(share) else share


def _output_of(check: Check) -> str:
    """Return the output that a check names as `probe 0, logits[1, 2]`."""
    return check.where.partition(", ")[2].partition("[")[0]


def size(value: float) -> str:
    """Return a size with two digits that count: `0.12`, `0`, `NaN`, or with a power of ten."""
    if not isfinite(value):
        return "NaN" if isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if _PLAIN[0] <= abs(value) < _PLAIN[1]:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa} \u00d7 {ten_to(int(power))}"


def ten_to(power: int) -> str:
    """Return a power of ten: `10⁻⁶`; the first ones are plain: `0.1`, `1`, `10`."""
    plain = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
    return plain.get(power) or f"10{str(power).translate(_POWERS)}"


def times(ratio: float) -> str:
    """Return how many times as large something is: `4.2`, `1,200`, `2.0 million`."""
    if not isfinite(ratio):
        return "∞"
    for least, word in ((1e9, "billion"), (1e6, "million")):
        if ratio >= least:
            return f"{ratio / least:,.1f} {word}"
    return f"{float(f'{ratio:.2g}'):,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def of_allowed(share: float) -> str:
    """Return an error as a share of what is allowed: `9 % of`, or from ten on `120,000 times`."""
    if share == 0:
        return "0 % of"
    return f"{percent(share)} of" if share < _OFTEN else f"{times(share)} times"


def of_bytes(number: int) -> str:
    """Return a number of bytes in decimal units: `712 bytes`, `1.3 kB`, `14.2 GB`."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {unit}"
    return f"{number:,} bytes"


def share_of_weight(share: float) -> str:
    """Return a share in percent with two digits that count: `0.012 %`, `3.1 %`, `120 %`."""
    value = 100 * share
    if not isfinite(value):
        return "∞"
    if value == 0:
        return "0 %"
    if value < _LEAST:
        return f"{size(value)} %"
    if value >= 10:
        return f"{value:,.0f} %"
    digits = 1 - floor(log10(value))
    return f"{value:.{digits}f} %"
