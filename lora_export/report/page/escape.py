"""Makes texts from files harmless: on a page a name is an attacker's, and an output is a model's.

Every such text passes through here once. Whatever cannot be seen, or moves what is around it, is
shown by its number.
"""

from __future__ import annotations

import html as _html
import re

from lora_export.shown import shown

_MOST = 240
"""Characters of a text that are shown by default."""

_NUMBERED = {ord(sign): f"&#{ord(sign)};" for sign in '&<>"\\`*_{}[]()#+!|~$'}
"""What Markdown or HTML reads as mark-up, and how text has it; GitHub splits a table at any bar."""

_LINKED = re.compile(r"@|&#35;|:(?=//)|\bwww(?=\.)")
"""After which GitHub makes a mention, a reference or a link of what is plain text."""


def clean(text: object, most: int = _MOST) -> str:
    r"""Return a text in one line of about `most` characters, where every character can be seen.

    A longer text loses its middle. A line feed becomes a sign, a tab a space, and what has no
    glyph is escaped as everywhere: `\u202e`. See `shown`.
    """
    found = str(text)
    if len(found) > most:
        head = most * 2 // 3
        found = f"{found[:head]}\u2026{found[len(found) - (most - head - 1) :]}"
    return shown(found.replace("\n", "\u21b5").replace("\t", " "))


def html(text: object, most: int = _MOST) -> str:
    """Return a text for HTML, inside an element or a quoted attribute; see `clean`."""
    return _html.escape(clean(text, most), quote=True)


def code(text: object, most: int = _MOST) -> str:
    """Return a text as a code element of HTML: a name, a path, a command."""
    return f"<code>{html(text, most)}</code>"


def markdown(text: object, most: int = _MOST) -> str:
    """Return a text for Markdown that is read as text: no mark-up, mention, reference or link."""
    # An empty comment ends the word that GitHub would look for, and shows nothing.
    return _LINKED.sub(r"\g<0><!-- -->", clean(text, most).translate(_NUMBERED))


def markdown_code(text: object, most: int = _MOST) -> str:
    """Return a text as code in Markdown, also inside a table; GitHub links nothing in code."""
    return f"<code>{clean(text, most).translate(_NUMBERED)}</code>"
