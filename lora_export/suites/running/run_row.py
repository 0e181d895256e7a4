"""Run one row: from what a case asks for to its outcome, whatever happens in between."""

from __future__ import annotations

import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.errors import LoraExportError, StorageError, UsageError
from lora_export.report.columns import first_names
from lora_export.report.result import Report, refused
from lora_export.report.verdict import verdict
from lora_export.shown import shown
from lora_export.suites.outcome import BUG, FAILED, Row
from lora_export.suites.running.call import call_of
from lora_export.suites.running.content_key import Digests, content_key, keyed_files
from lora_export.suites.running.installed import missing, mistyped
from lora_export.suites.running.judge import holds_without_goldens, judge
from lora_export.suites.running.model_folder import ModelFolder, model_folder
from lora_export.suites.running.opened_files import opened_files
from lora_export.suites.running.passes import Pass, Passes, default_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.records import Progress
    from lora_export.suites.running.call import Call
    from lora_export.suites.running.user_modules import UserCode
    from lora_export.suites.suite import Asked, Suite

TERMINATED = 143
"""The status with which SIGTERM ends a run."""


@dataclass(frozen=True, slots=True)
class Running:
    """How the rows of a suite are run."""

    suite: Suite
    strict: bool = False
    """Whether a skipped row fails."""
    cached: bool = True
    """Whether rows that have passed with the same content are taken from the cache."""
    keep: Path | None = None
    """The folder for the outputs; None removes them."""
    update: Callable[[Asked, Report, Digests], Asked] | None = None
    """Writes what a proven row found into its goldens; returns the row with what it expects now."""
    progress: Callable[[Progress], None] | None = None
    """Called with each stage of each row; None reports nothing."""
    reports: tuple[Path, ...] = ()
    """The files that the run writes at its end: they decide no row."""
    digests: Digests = field(default_factory=Digests)
    """Shared by all rows, so that a base is hashed once."""

    @property
    def passes(self) -> Passes | None:
        """Return where passes are kept; None where none are."""
        folder = default_folder() if self.cached else None
        return Passes(folder) if folder else None

    @property
    def takes_passes(self) -> bool:
        """Return whether a pass will do: not where outputs or new goldens are wanted."""
        return self.keep is None and self.update is None


@dataclass(frozen=True, slots=True)
class _Keyed:
    """Under which name the pass of a row is kept, and what the row may read."""

    key: str = ""
    """"" where the row is not cached."""
    folder: ModelFolder = field(default_factory=ModelFolder)
    files: frozenset[Path] = frozenset()
    """All files whose content is part of the key."""


def run_row(asked: Asked, running: Running, code: UserCode) -> Row:
    """Run a row and judge it.

    code: of the case, which its rows share; see modules_of_its_own.

    Raises:
        KeyboardInterrupt, SystemExit: a signal came.
        Exception: the function `progress` raised it. Nothing else is raised: a refusal is an
            outcome, and so is a bug.
    """
    row = Row(asked.case.name, asked.name, asked.case.line, "error")
    begun = time.perf_counter()
    if lacking := missing(asked.case.extras):
        cause = f"not installed: {', '.join(map(mistyped, lacking))}"
        if running.strict:
            return replace(row, outcome="failed", status=FAILED, cause=cause)
        return replace(row, outcome="skipped", cause=cause)
    try:
        call = call_of(asked)
        row = replace(row, command=call.command())
        row = _by_pass(row, asked, call, running, code) or _run(row, asked, call, running, code)
    except LoraExportError as error:  # of a golden, or of a path in a package
        row = _judged(row, asked, refused(asked.verb, error), error.status, running)
    except Exception as error:  # noqa: BLE001 - the other rows still run
        cause = f"a bug of lora-export: {type(error).__name__}: {error}"
        text = traceback.format_exc()
        row = replace(row, outcome="bug", status=BUG, cause=cause, traceback=text)
    except _OfCaller as stop:
        raise stop.error from None
    return row if row.cached else replace(row, seconds=time.perf_counter() - begun)


def _keyed(call: Call, running: Running, code: UserCode) -> _Keyed:
    """Return the key of a row as its files are now."""
    if not running.passes:
        return _Keyed()
    written = (running.suite.path, *running.reports, *([running.keep] if running.keep else ()))
    try:
        inputs, target = keyed_files(call), call.options.get("model") or ""
        folder = model_folder(target, running.digests, inputs=inputs, without=written)
        if code.model is None:
            code.model = folder.content
        if folder.why_not or folder.content != code.model:  # another one was imported
            return _Keyed("", folder)
        loaded = code.loaded()
        key = content_key(call, running.digests, model=folder.content, loaded=loaded)
    except (OSError, ValueError, LoraExportError):  # the verb reports what cannot be read
        return _Keyed()
    before = {path.resolve() for path in code.before.values()}
    return _Keyed(key, folder, frozenset({*inputs, *folder.files, *before}))


def _by_pass(row: Row, asked: Asked, call: Call, running: Running, code: UserCode) -> Row | None:
    """Return the row of an earlier run that has passed; None where it is to be run."""
    if not (running.passes and running.takes_passes) or asked.case.expect.exit:
        return None
    key = _keyed(call, running, code).key
    found = running.passes.take(key) if key else None
    if found is None:
        return None
    report = replace(found.report, output=call.artefact)
    judged = judge(asked, report, 0, running.digests)
    if judged.outcome != "held":
        return None  # its outputs are made again, so that the report has all of it
    return replace(
        row,
        outcome="held",
        verdict=found.verdict,
        report=report,
        seconds=found.seconds,
        cached=True,
    )


def _run(row: Row, asked: Asked, call: Call, running: Running, code: UserCode) -> Row:
    """Run the verb, judge what it found, and keep a pass."""
    begun = time.perf_counter()
    with _folder(asked, running) as folder:
        keyed = _keyed(call, running, code)
        try:
            with opened_files(code.opened):
                report, status = _found(call, folder, _named(asked, running))
        except LoraExportError as error:
            report, status = _without(folder, refused(call.verb, error)), error.status
        if running.update and holds_without_goldens(asked, report, status, running.digests):
            asked = running.update(asked, report, running.digests)
        row = _judged(row, asked, report, status, running)
        if running.passes and status == 0 and row.outcome == "held" and row.verdict:
            why = keyed.folder.why_not or _why_not(keyed, call, running, code, folder)
            if why:
                return replace(row, report=_with_warning(report, f"not cached: {why}"))
            seconds = time.perf_counter() - begun
            running.passes.keep(keyed.key, Pass(report, row.verdict, seconds))
    return row


def _why_not(keyed: _Keyed, call: Call, running: Running, code: UserCode, folder: Path) -> str:
    """Return why a pass of a row that was run says nothing about its key; "" where it does."""
    # Inputs that changed meanwhile are not those of the proof.
    if not keyed.key or _keyed(call, running, code).key != keyed.key:
        return "a file of the row changed while it was run"
    if strangers := code.strangers(keyed.files, without=folder):
        read = first_names([shown(str(path)) for path in strangers], 2)
        return f"the row read {read}, outside of its inputs and of the model's folder"
    return ""


def _with_warning(report: Report, text: str) -> Report:
    return replace(report, warnings=(*report.warnings, text))


def _judged(row: Row, asked: Asked, report: Report, status: int, running: Running) -> Row:
    judged = judge(asked, report, status, running.digests)
    if judged.outcome == "failed":
        status = FAILED
    return replace(
        row,
        outcome=judged.outcome,
        status=status,
        cause=judged.cause,
        verdict=verdict(report),
        report=report,
    )


def _named(asked: Asked, running: Running) -> Callable[[Progress], None] | None:
    """Return a function that reports a stage with the name of its row."""
    if not (report := running.progress):
        return None
    row = f"{asked.case.name}, {asked.name}"

    def named(event: Progress) -> None:
        try:
            report(replace(event, stage=f"{row}: {event.stage}"))
        except Exception as error:
            raise _OfCaller(error) from error

    return named


class _OfCaller(BaseException):
    """The caller's own function raised `error`: no handler of a row may take it for its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _found(
    call: Call, folder: Path, progress: Callable[[Progress], None] | None
) -> tuple[Report, int]:
    """Call the verb.

    Raises:
        LoraExportError: it refused, or the code of --model called sys.exit.
    """
    try:
        return call.run(folder, progress), 0
    except SystemExit as error:
        if error.code == TERMINATED:  # SIGTERM; see checkpoint.output.interrupts
            raise
        message = f"sys.exit({error.code!r}) ended the row before it was done"
        hint = "the code that --model names must return a model, and not call sys.exit"
        raise UsageError(message, hint=hint, cause="usage/model-function") from error


def _without(folder: Path, report: Report) -> Report:
    """Return a refusal whose hints name its output alone: the folder is gone after the row."""
    problems = [replace(one, hint=one.hint.replace(f"{folder}/", "")) for one in report.problems]
    return replace(report, problems=tuple(problems))


@contextmanager
def _folder(asked: Asked, running: Running) -> Iterator[Path]:
    """Yield the folder for the outputs of a row.

    Raises:
        StorageError: it cannot be made.
    """
    if running.keep is None:
        with tempfile.TemporaryDirectory(prefix="lora-export-parity-") as made:
            yield Path(made)
        return
    folder = running.keep / running.suite.folder_of(asked.case)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            error.strerror or str(error), where=str(folder), cause="storage/refused"
        ) from error
    yield folder
