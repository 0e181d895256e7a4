"""Words the mistakes of many tensors: one sentence for all that have the same."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from lora_export.records import Finding
from lora_export.report.columns import counted
from lora_export.verification.blame.diagnosis.scaling_causes import causes_of, part_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.verification.blame.diagnosis.module_causes import ModuleCause
    from lora_export.verification.blame.diagnosis.plain_causes import PlainCause

_PLURAL = re.compile(r"s\b")

_SINGULAR = {
    "were": "was",
    "hold": "holds",
    "lack": "lacks",
    "are": "is",
    "have": "has",
    "come": "comes",
}

_COMMON = {
    "other-module": "were merged with the update of another module",
    "part-not-merged": "lack the update in some of their rows",
    "single-rows": "differ from the merge in a few rows",
    "other-adapter": "hold a low-rank change that is not this adapter's",
    "second-adapter": "hold the update and another change of low rank",
}
"""What stands for words that differ from module to module."""

_BY_BASE = frozenset(
    {"other-base-under", "other-change", "second-adapter", "quantised-base", "rounded-narrower", ""}
)
"""Causes of a module that another base explains."""


_NOUNS = {
    "full-tensor-not-copied": "full tensor",
    "full-tensor-changed": "full tensor",
    "bias-not-copied": "trained bias",
    "tied-wrongly": "table",
}
"""What the tensors of a cause are called, where they are no copies of the base."""

_SAID = frozenset({"merged-twice", "merged-repeatedly", "subtracted"})
"""Mistakes that say the factor themselves."""

_FEW = 1 / 8
"""The largest share of the modules that is a few."""

_OF_ALL = frozenset({"rounded-narrower", "quantised-base", "zeros", "not-finite"})
"""Causes that are the same for tensors with and without an update."""


def shared_findings(
    modules: Sequence[ModuleCause], others: Sequence[PlainCause], total: int
) -> tuple[Finding, ...]:
    """Return a finding for each mistake that tensors with and without an update share.

    total: how many tensors there are.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, cause in [(m.tensor, m) for m in modules] + [(o.name, o) for o in others]:
        if cause.code in _OF_ALL:
            groups[(cause.code, cause.words)].append(name)
    return tuple(
        Finding(code, f"{which(len(names), total)} {agreeing(words, len(names))}", tuple(names))
        for (code, words), names in groups.items()
    )


def module_findings(
    causes: Sequence[ModuleCause], total: int, *, is_other_base: bool
) -> tuple[Finding, ...]:
    """Return a finding for each other mistake, that of the most modules first.

    Args:
        causes: one for each wrong module.
        total: how many modules are adapted.
        is_other_base: whether the tensors without an update show another base.
    """
    groups: dict[tuple[str, str], list[ModuleCause]] = defaultdict(list)
    for cause in causes:
        if cause.code == "wrong-factor":
            groups[("wrong-factor", "")].append(cause)
        elif cause.code not in (_BY_BASE if is_other_base else _OF_ALL):
            groups[(cause.code, _common(cause))].append(cause)
    found = []
    for (code, words), some in groups.items():
        names = tuple(cause.name for cause in some)
        if code == "wrong-factor":
            found += _of_factors(some, total)
        elif code == "not-merged" and len(some) == total:
            found.append(Finding(code, "no module was merged: all are the base's", names))
        else:
            kind, told = (code, words) if code else _of_unknown(len(some), total)
            message = f"{which(len(some), total, 'modules')} {agreeing(told, len(some))}"
            found.append(Finding(kind, message, names))
    return tuple(sorted(found, key=lambda finding: -len(finding.names)))


def _of_unknown(number: int, total: int) -> tuple[str, str]:
    """Return (code, words) of modules whose sampled rows show no mistake."""
    if number <= max(1, _FEW * total):
        return "single-elements", "differ from the merge in single elements"
    return "rounded-otherwise", "differ from the merge by little more than its rounding"


def _common(cause: ModuleCause) -> str:
    """Return the words that modules of one mistake share."""
    return _COMMON.get(cause.code, cause.words)


def _of_factors(some: Sequence[ModuleCause], total: int) -> list[Finding]:
    """Return the finding of modules that hold the update with a factor.

    One mistake gives different factors where ranks differ. Where none explains all, modules of one
    factor stand together.
    """
    causes = causes_of([wrong for cause in some for wrong in cause.wrong])
    if not causes and len(groups := _by_factor(some)) > 1:
        return [finding for group in groups for finding in _of_factors(group, total)]
    factors = sorted(wrong.factor for cause in some for wrong in cause.wrong)
    names, number = tuple(cause.name for cause in some), len(some)
    subject = which(number, total, "modules")
    if causes and causes[0][0] in _SAID:
        code, words = causes.pop(0)
        verb = words.removeprefix("the update was ")
        verb = verb if code != "subtracted" else "merged with the wrong sign: subtracted"
        message = f"{subject} {agreeing('were', number)} {verb}"
        # A second merge is by far the likeliest; a reader could do nothing with further rules.
        causes = [] if code == "merged-twice" else causes
    else:
        message = f"{subject} {agreeing('hold', number)} {part_words(factors[0], factors[-1])}"
        code = causes[0][0] if causes else "wrong-factor"
    ways = "; or ".join(words for _, words in causes)
    more = "; or it is " if code in _SAID else ": "
    return [Finding(code, f"{message}{more if ways else ''}{ways}", names)]


def _by_factor(some: Sequence[ModuleCause]) -> list[list[ModuleCause]]:
    groups: dict[str, list[ModuleCause]] = defaultdict(list)
    for cause in some:
        groups[f"{cause.wrong[0].factor:.2g}"].append(cause)
    return list(groups.values())


def plain_findings(causes: Sequence[PlainCause], total: int) -> tuple[Finding, ...]:
    """Return a finding for each mistake in tensors without an update, the most frequent first.

    Where half of all differ or more, they are another base's.

    total: how many tensors have no update.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cause in causes:
        if cause.code not in _OF_ALL:
            groups[(cause.code, cause.words)].append(cause.name)
    found = []
    for (code, words), names in groups.items():
        verb, number = agreeing(words, len(names)), len(names)
        if code == "tensor-changed" and 2 * number >= total:
            subject = which(number, total, "tensors without an update")
            message = f"another base: {subject} {agreeing('differ', number)}"
            found.append(Finding("other-base", message, tuple(names)))
        elif code in _NOUNS:
            message = f"{counted(number, _NOUNS[code])} {verb}"
            found.append(Finding(code, message, tuple(names)))
        elif code:
            subject = which(number, total, "tensors without an update")
            found.append(Finding(code, f"{subject} {verb}", tuple(names)))
    return tuple(sorted(found, key=lambda finding: -len(finding.names)))


def which(number: int, total: int, nouns: str = "tensors") -> str:
    """Return how many of all: `all 4 modules`, `1 of 4 modules`, `the only module`."""
    if total == 1:
        return f"the only {_PLURAL.sub('', nouns, count=1)}"
    return f"{number:,} of {total:,} {nouns}" if number < total else f"all {total:,} {nouns}"


def agreeing(words: str, number: int) -> str:
    """Return words whose first one, a verb, agrees with the number."""
    verb, space, rest = words.partition(" ")
    if number == 1:
        verb = _SINGULAR.get(verb, "differs" if verb == "differ" else verb)
    return f"{verb}{space}{rest}"
