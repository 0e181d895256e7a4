"""The outcome of a command as text for a terminal."""

from __future__ import annotations

import re
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.report.columns import WIDTH, first_names, fitted, laid_out, rows_of_lines
from lora_export.report.found import found_text
from lora_export.report.lowered import all_lowered, lowered_text
from lora_export.report.modules import modules_text
from lora_export.report.plan_text import plan_text
from lora_export.report.probed import probed_words
from lora_export.report.sentences import failed_sentence, passed_words
from lora_export.report.survival import stored_text
from lora_export.report.verdict import LEVELS, level_words, levels_json, verdict
from lora_export.shown import shell_word, shown_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_export.records import Check, Level
    from lora_export.report.result import Report

    Paint = Callable[[str], str]

_COMPARED: dict[Level, str] = {
    "": "others",
    "manifest": "with the manifest and the plan",
    "weights": "each tensor, read back from disk, with its recomputation in float64",
    "model": "the merged torch model's with the unmerged one's",
    "file": "its nodes and weights with the base's graph and the merged weights",
    "runtime": "its outputs with the torch models'",
    "precision": "the lower file, its weights and its outputs, with the float32 graph's",
}
"""What is compared at each level."""


_NEXT = "next:"
_GOES_ON = " \\"
"""Ends a line of a command that the next line continues."""

_OUTCOME = re.compile(
    r"^(?:PROVED|NOT PROVED|UNCHANGED|PLANNED|RESTORED|REFUSED|STOPPED)(?=:)"
    r"|^  (?:ok|FAILED)(?=  )",
    re.MULTILINE,
)
"""The words of a text that have a colour."""

_KEPT = "  captured by an earlier run (--no-capture-cache captures it anew)"

_MAPPED = (
    "ONNX Runtime ran on the weights in their mapped files, without its copies of them in the "
    "order of its kernels: they take 1 GiB or more"
)


def report_text(
    report: Report, *, verbose: bool, width: int = WIDTH, paint: Paint | None = None
) -> str:
    """Return the whole summary, wrapped at words; a refusal's has no plan.

    Args:
        report: of a command, or of its refusal.
        verbose: list every module and every tensor that changes, and not only the first modules.
        width: characters of a line.
        paint: returns a word of the outcome (PROVED, ok, FAILED) in its colour; None for none.
    """
    parts = [part for part in _parts(report, verbose=verbose, width=width) if part]
    text = shown_lines("\n\n".join(fitted(part, width) for part in parts).split("\n"))
    if paint:
        text = _OUTCOME.sub(lambda found: paint(found[0]), text)
    if report.next:
        after = next_text(report.next, width)
        text = f"{text}\n\n{after}" if text else after
    return text


def _parts(report: Report, *, verbose: bool, width: int) -> Iterator[str]:
    yield _verdict_text(report)
    yield levels_text(report) if report.checks else ""
    if report.plan and not report.problems:
        weights = report.facts.keys().isdisjoint({"graph", "graphs", "lowered", "precisions"})
        edits = weights and report.command == "merge"  # others write none of these files
        yield plan_text(
            report.plan,
            verbose=verbose,
            with_edits=edits,
            with_copies=report.dry_run,
            width=width,
        )
    if report.checks:
        yield checks_text(report.checks, verbose=verbose, width=width)
    yield modules_text(report.facts.get("modules", ()), verbose=verbose, width=width)
    if not report.problems:
        yield from _results(report, verbose=verbose, width=width)


def _results(report: Report, *, verbose: bool, width: int) -> Iterator[str]:
    """Yield at which sizes it was proven, and what the command did otherwise."""
    yield probed_words(report)
    yield stored_text(report.facts.get("survival"), report.kept)
    yield from _file_text(report, verbose=verbose, width=width)
    if seconds := report.facts.get("seconds"):
        yield _seconds_text(seconds)
    if found := report.facts.get("found"):
        yield found_text(found, verbose=verbose, width=width)
    if report.files:
        rows = [(f.path, f"{f.size:,} bytes", f"sha256 {f.sha256[:16]}") for f in report.files]
        yield shown_lines([f"wrote {report.output}", *laid_out(rows, width)])
    if report.dry_run:
        first = f"dry run: nothing was written{_space_text(report.facts.get('space'))}"
        yield shown_lines([first, *_expected_lines(report.facts.get("proof"))])


def _verdict_text(report: Report) -> str:
    """Return the verdict, and each mistake that explains it with the first names concerned."""
    found = verdict(report)
    lines = [str(found)] if found else []
    for number, finding in enumerate(report.findings):
        message = finding.message if number else ""  # the first one is the verdict
        parts = [message, first_names(finding.names)]
        lines.append(f"  {': '.join(part for part in parts if part)}")
    return shown_lines(line for line in lines if line.strip())


def next_text(command: str, width: int = WIDTH) -> str:
    """Return the next command, cut between its words so that a shell still reads it as one."""
    lines = [_NEXT]
    for word in shell_words(command):
        if len(lines[-1]) + 1 + len(word) + len(_GOES_ON) > width and lines[-1] != _NEXT:
            lines.append("   ")
        lines[-1] += f" {word}"
    return f"{_GOES_ON}\n".join(lines)


def shell_words(command: str) -> list[str]:
    """Return the words of a quoted command, each quoted again."""
    return [shell_word(word) for word in shlex.split(command)]


def levels_text(report: Report) -> str:
    """Return which levels are proven, and why another one was not run: a line each."""
    levels = levels_json(report.checks, report.unproven)
    rows = [
        ("proven", [level for level, found in levels.items() if found["proven"]]),
        ("failed", [n for n, f in levels.items() if not f["proven"] and "why" not in f]),
    ]
    words = partial(level_words, checks=report.checks)
    lines = [f"{word:8} {', '.join(map(words, names))}" for word, names in rows if names]
    lines += [f"unproven {words(name)}: {why}" for name, why in report.unproven.items()]
    return shown_lines(lines)


def _file_text(report: Report, *, verbose: bool, width: int) -> Iterator[str]:
    """Yield the paragraphs about an ONNX file, other than its checks."""
    if graph := report.facts.get("graph"):
        yield shown_lines(_graph_lines(graph, proven=bool(report.checks)))
    for lowered in all_lowered(report.facts):
        yield lowered_text(lowered, verbose=verbose, width=width)
    for name, each in report.facts.get("graphs", {}).items():
        first, *others = _graph_lines(each, proven=bool(report.checks))
        yield shown_lines([f"{name}: {first}", *others])
    if report.facts.get("session", {}).get("weights") == "mapped":
        yield _MAPPED


def _graph_lines(graph: Mapping[str, Any], *, proven: bool) -> list[str]:
    """Return the graph's size, what it was compared with, and what the merge saves.

    proven: the graph was compared with the base's.
    """
    size = f"{graph['nodes']} nodes, {graph['initializers']} initializers"
    kept = [_KEPT] if graph["capture"] == "cached" else []
    if not proven:
        return [f"graph: {size}, hash {graph['hash'][:12]}; not compared with the base's", *kept]
    lines = [f"zero overhead: topology equal to the base: {size}, hash {graph['hash'][:12]}", *kept]
    if saved := graph["saved"]:
        nodes, parameters = saved["nodes"], saved["parameters"]
        lines.append(
            f"  against the export with the LoRA in the graph: {nodes:,} nodes and "
            f"{parameters:,} parameters saved"
        )
    return lines


def _seconds_text(seconds: Mapping[str, float]) -> str:
    stages = [f"{stage} {took:.1f}" for stage, took in seconds.items() if stage != "total"]
    return f"seconds: {', '.join(stages)}; {seconds['total']:.1f} in all"


def _space_text(space: Mapping[str, Any] | None) -> str:
    if space is None:
        return ""
    free = "" if space["free"] is None else f", of {space['free']:,} that are free there"
    memory = f"{_megabytes(space['memory'])} of memory beside Python and torch"
    return f"; it takes {space['needed']:,} bytes{free}, and {memory}"


def _megabytes(number: int) -> str:
    return f"about {number // 10**6:,} MB" if number >= 10**6 else "less than 1 MB"


def _expected_lines(proof: Mapping[str, Any] | None) -> list[str]:
    """Return what the proof will take; empty where nothing is known of it."""
    if proof is None or proof["level"] == "none":
        return []
    if proof["not_run"]:
        return [f"  the proof will be by weights only: {proof['not_run']}"]
    seconds = "" if proof["seconds"] is None else f" in about {proof['seconds']:g} seconds"
    memory = f"{_megabytes(proof['memory'])} of memory"
    return [f"  the proof as a model reads {proof['read']:,} bytes{seconds}, and takes {memory}"]


def checks_text(checks: Sequence[Check], *, verbose: bool = False, width: int = WIDTH) -> str:
    """Return a row for each check: its outcome, its name, and what it found.

    The checks of one level stand together, under a line that names what is compared. `verbose` adds
    the source of each tolerance. A failed check always has it.
    """
    levels = list(dict.fromkeys(check.level for check in checks))
    checks = sorted(checks, key=lambda check: levels.index(check.level))
    rows = [
        ("ok" if check.passed else "FAILED", check.name, _found(check, verbose=verbose))
        for check in checks
    ]
    lines, shown = ["checks"], None
    for check, row in zip(checks, rows_of_lines(rows, width), strict=True):
        if check.level != shown:
            lines.append(f" {_compared(check.level, checks)}")
        shown = check.level
        lines += row
    return shown_lines(lines)


def _compared(level: Level, checks: Sequence[Check]) -> str:
    """Return what is compared at a level."""
    words = level_words(level, checks)
    if words == LEVELS["manifest"]:
        return f"{words}: with the plan"
    return f"{words}: {_COMPARED[level]}" if level else _COMPARED[level]


def _found(check: Check, *, verbose: bool) -> str:
    words = passed_words(check) if check.passed else failed_sentence(check)
    return f"{words}; {check.basis}" if check.basis and (verbose or not check.passed) else words
