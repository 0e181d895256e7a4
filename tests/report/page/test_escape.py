from __future__ import annotations

import unicodedata
from html.parser import HTMLParser

import pytest

from lora_export.report.page.escape import clean, code, html, markdown, markdown_code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.q_proj", "model.layers.0.q_proj"),
        ("Größe 数 🎉", "Größe 数 🎉"),
        ("a\x00b\x1b[31mc\x7f", "a\\x00b\\x1b[31mc\\x7f"),
        ("abc\u202edcba\u2066x\u200f", "abc\\u202edcba\\u2066x\\u200f"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("one\ntwo\tthree\r", "one\u21b5two three\\r"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ufeff\u00ad", "\\ufeff\\xad"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
        ("Z\u0300\u0301\u0302\u0303\u0304", "Z\u0300\u0301\u0302\\u0303\\u0304"),
    ],
)
def test_what_cannot_be_seen_is_shown_by_its_number(text, shown):
    assert clean(text) == shown


def test_a_long_text_loses_its_middle():
    text = "start" + "x" * 10_000 + "end"
    shown = clean(text, 60)
    assert len(shown) == 60
    assert shown.startswith("start")
    assert shown.endswith("end")
    assert "\u2026" in shown


def every_character() -> str:
    return "".join(map(chr, [*range(0x3000), *range(0xD800, 0xE000), *range(0xFE00, 0xFFFF)]))


def test_no_character_without_a_glyph_is_left():
    shown = clean(every_character(), 10**6)
    kinds = {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert shown.encode()


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += "".join(value or "" for _, value in attrs)

    def handle_data(self, data):
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "\"onload='alert(1)'",
    "</code></svg></title><img src=x onerror=alert(1)>",
    "&lt;b&gt; &#60;b&#62;",
    "<!-- --><![CDATA[",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_in_html_a_text_is_a_text(text):
    for page, tags in ((html(text), []), (code(text), ["code"]), (f'<p a="{html(text)}">', ["p"])):
        found = Texts()
        found.feed(page)
        found.close()
        assert (found.tags, found.text) == (tags, text)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a|b", "`a`", "**a** _b_ [c](d) ![e](f)", "# a", "~~a~~"]
)
@pytest.mark.parametrize("form", [markdown, markdown_code])
def test_in_markdown_no_sign_of_mark_up_is_left(text, form):
    found = Texts()
    shown = form(text)
    found.feed(shown)
    found.close()
    assert found.text == text
    bare = shown.removeprefix("<code>").removesuffix("</code>").replace("<!-- -->", "")
    assert not set(bare) & set("<>|`*_[]()~\\")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("by @someone", "by @<!-- -->someone"),
        ("see #12", "see &#35;<!-- -->12"),
        ("https://evil.example/x", "https:<!-- -->//evil.example/x"),
        ("www.evil.example", "www<!-- -->.evil.example"),
        ("stage: merge", "stage: merge"),
    ],
)
def test_github_makes_no_link_of_a_text(text, shown):
    assert markdown(text) == shown
