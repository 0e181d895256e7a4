"""What a result was made of and where: inputs with their digests, options, versions, machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.report.page.escape import code, html
from lora_export.report.page.measures import of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.report.result import Report


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a result was made of, or that was written."""

    role: str
    """What it is: "base", "adapter" or "written"."""
    name: str
    size: int
    """In bytes."""
    sha256: str = ""
    """In hexadecimal; empty where the file was not hashed: that takes as long as copying it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result comes from; empty fields are not shown."""

    inputs: tuple[NamedFile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the user gave, by name."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of the packages that decide the result."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """Processor and system, in words."""
    outputs: tuple[tuple[str, int], ...] = ()
    """Name and bytes of every file of the result, where its manifest lists them."""

    def bytes_of(self, role: str) -> int:
        """Return the bytes of all inputs of one role."""
        return sum(file.size for file in self.inputs if file.role == role)


def provenance_html(report: Report, found: Provenance) -> str:
    """Return inputs, options, choices and environment as HTML; empty where nothing is known."""
    rows = [*_input_rows(report, found), *_making_rows(report, found)]
    parts = [f'<dl class="facts">{"".join(rows)}</dl>'] if rows else []
    if report.plan and report.plan.choices:
        items = "".join(f"<li>{html(choice)}</li>" for choice in report.plan.choices[:20])
        parts.append(f"<details><summary>What was decided</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _input_rows(report: Report, found: Provenance) -> Iterator[str]:
    written = (NamedFile("written", file.path, file.size, file.sha256) for file in report.files)
    for file in (*found.inputs, *written):
        digest = f"sha256 {file.sha256}" if file.sha256 else "not hashed"
        size = f'<span class="note"> {of_bytes(file.size)}</span>'
        hashed = f'<span class="hash">{code(digest)}</span>'
        yield _row(file.role, f"{code(file.name)}{size}{hashed}")


def _making_rows(report: Report, found: Provenance) -> Iterator[str]:
    for name, text in facts_of(report, found):
        yield _row(name, html(text))


def facts_of(report: Report, found: Provenance) -> Iterator[tuple[str, str]]:
    """Yield recipe, options, versions and machine as (name, text), in plain text."""
    if plan := report.plan:
        yield "made of", " + ".join(map(str, (plan.base.root, *(a.path for a in plan.adapters))))
        yield "recipe", plan.recipe
    if found.options:
        yield "options", ", ".join(f"{name} {value}" for name, value in found.options.items())
    if found.versions:
        yield "versions", ", ".join(f"{name} {each}" for name, each in found.versions.items())
    yield from found.machine.items()


def _row(name: str, value: str) -> str:
    return f"<dt>{html(name)}</dt><dd>{value}</dd>"
