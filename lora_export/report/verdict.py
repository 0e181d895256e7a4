"""The verdict of a command in one line: what every report begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from lora_export.records import CHANGED, ELEMENTS
from lora_export.report.columns import counted
from lora_export.report.lowered import all_lowered, share_of_effect
from lora_export.report.sentences import failed_sentence, percent
from lora_export.report.survival import kept_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import Check, Level, MergePlan
    from lora_export.report.result import Report

Word = Literal["PROVED", "NOT PROVED", "UNCHANGED", "PLANNED", "RESTORED", "REFUSED", "STOPPED"]
"""What came out. UNCHANGED: only digests were compared, and all are those of the manifest. STOPPED:
an interrupt, or a bug of lora-export."""

_STOPPED = ("interrupted", "bug")
"""The codes of an end that is no refusal."""

LEVELS: dict[str, str] = {
    "manifest": "files",
    "weights": "weights",
    "model": "outputs",
    "file": "ONNX graph",
    "runtime": "ONNX Runtime",
    "precision": "precision",
}
"""What is compared at each level, in a word or two."""

_FOREIGN = {"manifest": "config"}
"""The same of another tool's merge, whose other files are noted, and not proven."""

_OUTPUTS: tuple[Level, ...] = ("model", "runtime")
"""The levels whose errors say most. An element's rounding alone is always near what it may be."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a command in one line."""

    word: Word
    text: str
    """What was proven, and how tightly; or the cause of a refusal."""
    share: float | None = None
    """The worst error as a share of what is allowed; None where no error was measured."""
    subject: str = ""
    """The file, tensor or option that a refusal is about; empty where its cause names it."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.word, self.subject, self.text) if part)


def verdict(report: Report) -> Verdict | None:
    """Return the verdict of a report; None for `inspect`, which judges nothing."""
    if report.problems or report.passed is False:
        word: Word = "STOPPED" if report.code in _STOPPED else "REFUSED"
        return Verdict(word, _cause(report), worst_share(report.checks), _subject(report))
    if report.command == "inspect":
        return None
    return _unproven(report) or _proved(report)


def verdict_json(report: Report) -> dict[str, Any] | None:
    """Return the verdict as --json and the manifest hold it; None where there is none."""
    if found := verdict(report):
        return {"word": found.word, "text": found.text, "share": found.share}
    return None


def _unproven(report: Report) -> Verdict | None:
    """Return the verdict of a command that proved nothing about a merge; None for all others."""
    if report.dry_run:
        return Verdict("PLANNED", _planned(report))
    if report.command == "unmerge":
        return Verdict("RESTORED", "the base, byte for byte")
    if not report.checks:
        return Verdict("NOT PROVED", "merged without a proof (--no-verify)")
    if report.plan is None:
        return Verdict("UNCHANGED", _unchanged(report.facts.get("recorded", {})))
    return None


def _planned(report: Report) -> str:
    """Return what would be written, and which proof it would get where that is not the whole."""
    parts = ["nothing was written"]
    if report.plan:
        tensors = counted(len(report.plan.steps()), "tensor")
        parts.append(f"{len(report.plan.changed()):,} of {tensors} would be changed or new")
    proof = report.facts.get("proof", {})
    if proof.get("level") == "none":
        parts.append("nothing would be proven (--no-verify)")
    elif proof.get("not_run"):
        parts.append("the outputs would not be compared")
    return "; ".join(parts)


def _unchanged(recorded: Mapping[str, Any]) -> str:
    """Return that the files are those of the manifest, and which proof it records.

    recorded: of the manifest, whether its verification `passed`, and by which `levels`.
    """
    records = {
        None: "no proof",
        False: "a failed proof",
        True: f"a proof{_listed(recorded.get('levels', ()))}",
    }[recorded.get("passed")]
    return f"every digest is the manifest's, which records {records}; not recomputed"


def _listed(levels: Sequence[str]) -> str:
    """Return what was compared at the levels, with `only` where outputs were not."""
    merge = [LEVELS[level] for level in levels if level in LEVELS and level != "manifest"]
    only = "" if {*levels} & {*_OUTPUTS} else " only"
    return f" ({', '.join(merge)}{only})" if merge else ""


def _proved(report: Report) -> Verdict:
    share = worst_share(report.checks)
    levels = levels_json(report.checks, report.unproven)
    words = {**LEVELS, **(_FOREIGN if _is_foreign(report) else {})}
    proven = ", ".join(words[level] for level, found in levels.items() if found["proven"])
    notes = "".join(f"; {note}" for note in _notes(report))
    text = f"{_equation(report)}{_tightness(report, share)} ({proven}{notes})"
    return Verdict("PROVED", text, share)


def _equation(report: Report) -> str:
    """Return what is equal to base + adapter, and what rounding did to it."""
    facts = report.facts
    lowered = all_lowered(facts)
    if lowered:
        what = "the ONNX file" if len(lowered) == 1 and "graph" not in facts else "every ONNX file"
        names = ", ".join(one["precision"] for one in lowered)
        return f"{what} = base + adapter, rounded to {names}{_moved(lowered)}"
    onnx = not facts.keys().isdisjoint({"graph", "graphs"})
    what = "the ONNX file" if onnx else "merged"
    followed = ""
    if _is_foreign(report):
        what = what if onnx else PurePath(report.output).name or what
        followed = _followed(report.plan) if report.plan else ""
    stored = kept_words(facts.get("survival"))
    return f"{what} = base + adapter{followed}{stored}"


def _followed(plan: MergePlan) -> str:
    """Return the recipe that another tool's merge follows; auto with what it is in its library."""
    alone = plan.adapters[0] if len(plan.adapters) == 1 else None
    is_peft = alone is not None and alone.dialect == "peft" and alone.weight == 1
    own = ", PEFT's merge_and_unload" if is_peft and plan.recipe == "auto" else ""
    return f" by --recipe {plan.recipe}{own}"


def _is_foreign(report: Report) -> bool:
    """Return whether no manifest was beside the artefact: another tool may have made it."""
    return report.command == "verify" and not any(
        check.name == "digests" for check in report.checks
    )


def level_words(level: str, checks: Sequence[Check]) -> str:
    """Return the verdict's words for a level, with its name in options where that is another.

    Without a manifest the files are compared with the plan alone.
    """
    words = LEVELS.get(level, level)
    has_none = level == "manifest" and not any(check.name == "digests" for check in checks)
    return words if words == level or has_none else f"{words} ({level})"


def _moved(lowered: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the rounding of ONNX files moves their outputs; empty where not measured."""
    losses = [loss for one in lowered for loss in one.get("loss", ())]
    shares = [share for share in map(share_of_effect, losses) if share is not None]
    if not shares:
        return ""
    return f", which moves outputs by {percent(max(shares))} of what the adapter does"


def _tightness(report: Report, share: float | None) -> str:
    if share is None or all_lowered(report.facts):
        return ""
    if any(check.level in _OUTPUTS for check in report.checks):
        return f", to {percent(share)} of the allowed error"
    return ", every element within its rounding"


def _notes(report: Report) -> list[str]:
    """Return what the proof does not cover, a few words each."""
    notes = []
    if why := report.unproven.get("model"):
        unseen = why.startswith("does not resolve")
        notes.append("outputs too noisy to show the adapter" if unseen else "outputs not run")
    weights = {check.name for check in report.checks if check.level == "weights"}
    if weights and CHANGED not in weights:
        notes.append("an adapter without effect is accepted: --allow-noop")
    return notes


def _cause(report: Report) -> str:
    """Return why it was refused: the mistake that was found, else what failed first."""
    if report.findings:
        return report.findings[0].message
    failed = [check for check in report.checks if not check.passed]
    if failed:
        # A wrong element shows that something is wrong; every other check shows what.
        return failed_sentence(min(failed, key=lambda check: check.name == ELEMENTS))
    first, *others = report.problems
    more = f" (and {counted(len(others), 'further problem')})" if others else ""
    return f"{first.message}{more}"


def _subject(report: Report) -> str:
    """Return what `_cause` is about, where that is the first problem."""
    if report.findings or report.passed is False:
        return ""
    return report.problems[0].subject


def worst_share(checks: Sequence[Check]) -> float | None:
    """Return the worst error as a share of what is allowed; None where none was measured.

    Errors of outputs are taken where there are any, else those of weights.
    """
    measured = [check for check in checks if check.tolerance > 0 and not check.at_least]
    outputs = [check for check in measured if check.level in _OUTPUTS]
    failed = [check for check in measured if not check.passed]
    return max((share_of(check) for check in failed or outputs or measured), default=None)


def share_of(check: Check) -> float:
    """Return how much of what a check allows was measured: above 1 where the check failed."""
    if check.at_least:
        return check.tolerance / check.worst if check.worst else float("inf")
    if check.tolerance:
        return check.worst / check.tolerance
    return float("inf") if check.worst else 0.0


def levels_json(checks: tuple[Check, ...], unproven: Mapping[str, str]) -> dict[str, Any]:
    """Return for each level whether it is proven, and why not where it shows nothing."""
    ran = dict.fromkeys(check.level for check in checks if check.level)
    passed = {level: all(c.passed for c in checks if c.level == level) for level in ran}
    found: dict[str, Any] = {level: {"proven": right} for level, right in passed.items()}
    return found | {level: {"proven": False, "why": why} for level, why in unproven.items()}
