"""The skeleton of a page: one file, without a script and without anything from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.report.page.escape import html
from lora_export.report.page.style import style
from lora_export.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

HTML_START = "<!doctype html><!-- lora-export report -->"
"""How every page in HTML begins; a file that begins so may be replaced by a later report."""

MARKDOWN_START = "<!-- lora-export report -->"
"""How every page in Markdown begins."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""What a browser may load for the page: nothing. A script would not run, whatever a name holds."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page, under a heading of its own."""

    key: str
    """Names it in a link."""
    title: str
    """In plain text."""
    body: str
    """In HTML."""


def page(title: str, top: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML.

    Args:
        title: in plain text; the first heading.
        top: HTML that stands before all sections.
        sections: in order; those without a body are left out.
    """
    shown = [section for section in sections if section.body]
    links = [f'<li><a href="#{part.key}">{html(part.title)}</a></li>' for part in shown]
    nav = f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>' if len(shown) > 2 else ""
    return "".join(
        (
            HTML_START,
            '\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
            f"<title>{html(title)}</title>\n<style>{style()}</style></head>\n<body>",
            f"<header><h1>{html(title)}</h1></header>\n<main>{top}{nav}\n",
            "\n".join(map(_section, shown)),
            f"</main>\n<footer>Written by lora-export {VERSION}.</footer></body></html>\n",
        )
    )


def _section(part: Section) -> str:
    heading = f'<h2 id="{part.key}">{html(part.title)}</h2>'
    return f'<section aria-labelledby="{part.key}">{heading}{part.body}</section>'
