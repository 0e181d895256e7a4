"""A report as a whole page, in either form."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from lora_export.report.page.escape import clean, code
from lora_export.report.page.frame import page
from lora_export.report.page.markdown import markdown_page
from lora_export.report.page.provenance import Provenance
from lora_export.report.page.sections import sections, verdict_block

if TYPE_CHECKING:
    from lora_export.report.result import Report

_TITLE = 80
"""Characters of an output's name in the title; the whole path stands below it."""

Form = Literal["html", "md"]
"""The form of a page: for a browser, or for a pull request."""


def rendered(report: Report, form: Form, provenance: Provenance | None = None) -> str:
    """Return the page of one report.

    The same report gives the same text: a page has no time, and the seconds of a run are left out.

    Args:
        report: what a command did, or why it refused (`report.result.refused`).
        form: "html" or "md".
        provenance: what the result was made of; None shows nothing of it.
    """
    known = provenance or Provenance()
    if form == "md":
        return markdown_page(report, known)
    name = clean(PurePath(report.output).name, _TITLE)
    title = f"lora-export {report.command}{': ' if name else ''}{name}"
    place = f'<p class="note">{code(report.output)}</p>' if report.output != name else ""
    return page(title, f"{place}{verdict_block(report)}", sections(report, known))
