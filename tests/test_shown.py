"""Text from outside, shown: on one line, printable, of bounded length, and copied unchanged."""

import subprocess

import pytest

from lora_export.shown import MOST, shell_word, shown, shown_line, shown_lines

FORGED = "x\x1b[2J\x1b[Hchecks\n  ok  everything\r"

HOSTILE = {
    "line feed": "a\nb",
    "carriage return": "a\rb",
    "escape": "\x1b[31mred",
    "eight-bit control": "\x9b31m",
    "title of the window": "\x1b]0;title\x07",
    "backspace": "abc\x08\x08\x08",
    "NUL": "a\0b",
    "delete": "a\x7f",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "right-to-left override": "\u202egnp.exe",
    "isolate": "\u2067a\u2069",
    "zero width": "a\u200bb\ufeff",
    "tag": "a\U000e0041",
    "surrogate": "a\ud800b",
    "many marks": "Z" + "\u0301" * 40,
    "forged": FORGED,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_shown_is_printable_and_has_one_line(text):
    for result in (shown(text), shown_line(text), shown_lines([text])):
        assert result != text
        assert result.isprintable()
        assert len(result.splitlines()) == 1
        result.encode()
        assert shown(result) == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.layers.0.q_proj.weight",
        "Größe 模型 é",
        "Z\u0300\u0301",
        "\u0645\u06cc\u200c\u062e",
        r"a\nb",
        "a b",
    ],
)
def test_what_is_printable_stays_as_it_is(text):
    assert shown(text) == text
    assert shown_line(text) == text


def test_escapes_can_be_told_apart():
    assert shown("a\nb\x1b\u202e\ud800") == r"a\nb\x1b\u202e\ud800"


def test_a_line_break_in_a_name_begins_no_line():
    text = shown_lines(["checks", f"  FAILED  {FORGED}"])
    assert text.splitlines() == ["checks", r"  FAILED  x\x1b[2J\x1b[Hchecks\n  ok  everything\r"]


@pytest.mark.parametrize(
    "text",
    [
        f"base.safetensors: tensor {'n' * 300} is missing",
        "x" * 3_000_000,
        "\x1b" * 3_000_000,
        " ".join(["word"] * 1000),
        f"{'a/' * 150}model.safetensors: {'m.' * 200}weight has the shape [4, 4]",
    ],
)
def test_a_message_has_a_bounded_length(text):
    line = shown_line(text)
    assert len(line) <= MOST
    assert "..." in line
    assert shown_line(line) == line


def test_a_long_name_loses_its_middle_and_the_message_stays():
    name = f"first.{'middle.' * 60}last"
    line = shown_line(f"base.safetensors: {name} is not in the adapter")
    assert line.startswith("base.safetensors: first.middle.")
    assert line.endswith(".last is not in the adapter")


WORDS = ["a'b", "a b", "$(id)", "\x1b'", "\x1b\\", "\x1b7", "\n$(id)`id`", "", "-x"]
PASSED_ON = [text for text in HOSTILE.values() if "\0" not in text and "\ud800" not in text]


@pytest.mark.parametrize("text", [*PASSED_ON, *WORDS])
def test_a_word_of_a_command_is_copied_unchanged(text):
    word = shell_word(text)
    assert word.isprintable()
    ran = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert ran.stdout.decode() == text


def test_bytes_that_are_no_text_are_copied_unchanged():
    word = shell_word(b"a\xff\n".decode("utf-8", "surrogateescape"))
    ran = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert ran.stdout == b"a\xff\n"


def test_a_word_that_no_program_can_be_given_is_printable():
    assert shell_word("a\ud800").isprintable()
