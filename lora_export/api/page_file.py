"""The file of `report=`: checked before the work begins, and written whatever comes out."""

from __future__ import annotations

import functools
import inspect
import os
import platform
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

from lora_export.api.recording import input_files
from lora_export.checkpoint.folder.side_files import manifest_path
from lora_export.checkpoint.output.publish import staging
from lora_export.checkpoint.output.targets import check_output, is_page
from lora_export.checkpoint.output.writer import write_bytes
from lora_export.checkpoint.reading import read_json_object
from lora_export.errors import LoraExportError, OutputError, StorageError, UsageError
from lora_export.records import Problem
from lora_export.report.manifest import versions
from lora_export.report.page.provenance import NamedFile, Provenance
from lora_export.report.page.rendered import rendered
from lora_export.report.result import Report, refused
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_export.records import MergePlan
    from lora_export.report.page.rendered import Form

P = ParamSpec("P")

_FORMS: Mapping[str, Form] = {".html": "html", ".htm": "html", ".md": "md"}
_PLACES = ("base", "adapters", "artifact")
_WRITTEN = ("output", "undo")
_LEFT_OUT = {*_PLACES, *_WRITTEN, "report", "progress"}


@dataclass(frozen=True, slots=True)
class PageFile:
    """Where a page goes; the place is free, or holds an earlier report."""

    path: Path
    #: Files and folders that the page may not touch.
    inputs: tuple[Path, ...] = ()

    @classmethod
    def at(
        cls, path: str | Path, *, inputs: Sequence[Path] = (), outputs: Sequence[Path] = ()
    ) -> PageFile:
        """Check the place of a page before any work is done.

        Args:
            path: ends in .html, .htm or .md, which decides the form.
            inputs: files and folders that are read.
            outputs: files and folders that the command writes.

        Raises:
            UsageError: the ending is another.
            OutputError: another file is there, or the page would lie inside an input or an output;
                or the folder is missing or not writable.
        """
        file = Path(path)
        if file.suffix.lower() not in _FORMS:
            hint = f"{file.with_suffix('.html')}, or .md for a pull request"
            raise UsageError(
                "a report ends in .html or .md",
                where=f"--report {file}",
                hint=hint,
                cause="usage/output-name",
            )
        _refuse_inside(file, outputs)
        if os.path.lexists(file) and not is_page(file):
            message = "exists already, and is no report of lora-export"
            hint = "choose another name for --report, or remove it yourself"
            raise OutputError(message, where=str(file), hint=hint, cause="output/exists")
        check_output(file, "file", force=True, inputs=inputs)
        return cls(file, tuple(inputs))

    @property
    def form(self) -> Form:
        """Return the form that the ending names."""
        return _FORMS[self.path.suffix.lower()]

    def write(self, text: str) -> None:
        """Publish the page in one step, in the place of an earlier report.

        Raises:
            OutputError: another file has appeared there meanwhile.
            StorageError: the system refuses.
        """
        force = is_page(self.path)
        with staging(self.path, force=force, inputs=self.inputs, kind="file") as stage:
            write_bytes(stage.path, text.encode())
            stage.publish()


def _refuse_inside(file: Path, outputs: Sequence[Path]) -> None:
    """Refuse a page in an output, which is published as a whole.

    Raises:
        OutputError: the page is the output, or lies inside it.
    """
    place = file.parent.resolve() / file.name
    for output in outputs:
        other = output.parent.resolve() / output.name
        if place == other or other in place.parents:
            inside = "is" if place == other else "lies inside"
            message = f"{inside} the output {output}"
            raise OutputError(
                message, where=str(file), hint="name a place beside it", cause="output/place"
            )


def with_page(verb: str) -> Callable[[Callable[P, Report]], Callable[P, Report]]:
    """Return a decorator that writes the page of the keyword `report`, also of a refusal.

    Raises:
        UsageError, OutputError: from the call, before any work; see PageFile.at.
        StorageError: from the call, the page cannot be written. The result is published then.
    """

    def decorate(function: Callable[P, Report]) -> Callable[P, Report]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Report:
            wanted = kwargs.get("report")
            if not isinstance(wanted, str | os.PathLike):
                return function(*args, **kwargs)
            values = _arguments(signature, args, kwargs)
            inputs, outputs = _paths(values, _PLACES), _paths(values, _WRITTEN)
            page = PageFile.at(Path(wanted), inputs=inputs, outputs=outputs)
            try:
                report = function(*args, **kwargs)
            except LoraExportError as error:
                _write_refusal(page, verb, error, values)
                raise
            _write(page, report, values)
            return report

        return call

    return decorate


def _arguments(
    signature: inspect.Signature, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, Any]:
    """Return the arguments of a call by name; those that do not fit are left to the call itself."""
    by_place = dict(zip(signature.parameters, args, strict=False))
    return {**by_place, **kwargs}


def _paths(values: Mapping[str, Any], names: Sequence[str]) -> list[Path]:
    found = [values.get(name) for name in names]
    listed = [each if isinstance(each, list | tuple) else [each] for each in found]
    return [Path(one) for each in listed for one in each if isinstance(one, str | os.PathLike)]


def _write(page: PageFile, report: Report, values: Mapping[str, Any]) -> None:
    """Write the page of a command that did what was asked.

    Raises:
        StorageError, OutputError: the page cannot be written; the hint says what is published.
    """
    done = f"{report.output} is published" if report.files else "the command is done"
    hint = f"{done}; only its report is missing"
    try:
        page.write(rendered(report, page.form, provenance_of(report, values)))
    except LoraExportError as error:
        first, *more = error.problems
        error.problems = (replace(first, hint=hint), *more)
        raise
    except Exception as error:
        message = f"the report could not be made: {_named(error)}"
        where = str(page.path)
        raise StorageError(message, where=where, hint=hint, cause="storage/refused") from error


def _write_refusal(
    page: PageFile, verb: str, error: LoraExportError, values: Mapping[str, Any]
) -> None:
    """Write the page of a refusal; any fault in making it is a further problem of the refusal."""
    try:
        report = refused(verb, error)
        page.write(rendered(report, page.form, provenance_of(report, values)))
    except Exception as fault:  # noqa: BLE001 - the refusal itself must come out
        lost = f"the report could not be written: {_named(fault)}"
        hint = error.problems[-1].hint  # the last one is what to do now
        problem = Problem(lost, str(page.path), hint, cause="storage/refused")
        error.problems = (*error.problems, problem)


def _named(fault: Exception) -> str:
    if isinstance(fault, LoraExportError):
        return fault.problems[0].message
    return f"{type(fault).__name__}: {reason_of(fault)}"


def provenance_of(report: Report, values: Mapping[str, Any]) -> Provenance:
    """Return what a report's result was made of, with the environment.

    The base's SHA-256 is known where the run has hashed it: its manifest has it then.

    values: the arguments of the call, by name.
    """
    given = {name: value for name, value in values.items() if name not in _LEFT_OUT}
    options = {n: _told(v) for n, v in given.items() if v not in (None, False, (), [])}
    inputs: tuple[NamedFile, ...] = ()
    with suppress(LoraExportError, OSError):  # an input that was removed meanwhile
        inputs = tuple(_recorded(report) if report.files else _planned(report.plan))
    return Provenance(inputs, options, _versions(), _machine(), _outputs(report))


def _told(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _recorded(report: Report) -> Iterator[NamedFile]:
    """Yield the inputs that the manifest of this run lists."""
    inputs = cast("Any", read_json_object(manifest_path(Path(report.output)))["inputs"])
    for entry in inputs["base"]:
        yield _entry("base", entry)
    for adapter in inputs["adapters"]:
        more = [adapter["config"]] if "config" in adapter else []
        for entry in [adapter, *adapter.get("files", ()), *more]:
            yield _entry("adapter", entry)


def _entry(role: str, entry: Mapping[str, Any]) -> NamedFile:
    return NamedFile(role, entry["name"], entry["bytes"], entry.get("sha256", ""))


def _planned(plan: MergePlan | None) -> Iterator[NamedFile]:
    """Yield the inputs of a plan; the base is not hashed, which takes as long as copying it."""
    if plan is None:
        return
    base, adapters = input_files(plan, {})
    for file in base:
        yield NamedFile("base", file.path, file.size)
    for file in (file for files in adapters for file in files):
        yield NamedFile("adapter", file.path, file.size, file.sha256)


def _outputs(report: Report) -> tuple[tuple[str, int], ...]:
    """Return the files of a proven artefact, which the report of `verify` does not list.

    What cannot be read is left out, such as a link whose target is gone.
    """
    path = Path(report.output)
    if report.files or report.dry_run or not report.output:
        return ()
    found: list[tuple[str, int]] = []
    with suppress(OSError):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with suppress(OSError):
                status = file.stat()
                found += [(file.name, status.st_size)] if stat.S_ISREG(status.st_mode) else []
    return tuple(found)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions()}


def _machine() -> dict[str, str]:
    return {
        "processor": f"{_processor() or platform.processor()} ({platform.machine()})",
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    """Return the name of the processor as Linux knows it; empty where it does not say."""
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return ""
