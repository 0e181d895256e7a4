"""Colours and widths on terminals, and none of both in files and pipes."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.cli import main
from lora_export.cli._terminal import coloured, is_coloured, print_message, text_width
from lora_export.report.columns import WIDTH

LONG = "error: " + "word " * 40


class Terminal(io.StringIO):
    """stdout or stderr, with or without a terminal behind it."""

    def __init__(self, *, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that sets what stdout and stderr are, and how wide."""

    def put(*, is_terminal=True, columns=60):
        both = Terminal(is_terminal=is_terminal)
        monkeypatch.setattr(sys, "stdout", both)
        monkeypatch.setattr(sys, "stderr", both)
        monkeypatch.setattr(
            "shutil.get_terminal_size", lambda *_, **__: os.terminal_size((columns, 24))
        )
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        return both

    return put


@pytest.mark.parametrize(
    ("is_terminal", "columns", "width"),
    [(False, 60, WIDTH), (True, 60, 60), (True, 120, 120), (True, 5, 40)],
)
def test_the_width_is_the_terminals(is_terminal, columns, width, terminal):
    terminal(is_terminal=is_terminal, columns=columns)
    assert text_width() == width


@pytest.mark.parametrize(
    ("is_terminal", "environment", "has_colours"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals(is_terminal, environment, has_colours, terminal, monkeypatch):
    terminal(is_terminal=is_terminal)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_coloured() is has_colours


def test_each_outcome_has_a_colour():
    words = ("PROVED", "NOT PROVED", "UNCHANGED", "PLANNED", "RESTORED", "REFUSED", "STOPPED")
    for word in (*words, "  ok", "  FAILED"):
        assert coloured(word) != word
        assert word in coloured(word)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_message_is_wrapped_on_a_terminal_alone(is_terminal, terminal):
    written = terminal(is_terminal=is_terminal)
    print_message(LONG.strip())
    lines = written.getvalue().splitlines()
    assert (max(map(len, lines)) <= 60) is is_terminal
    assert " ".join(" ".join(lines).split()) == LONG.strip()


@pytest.fixture
def merge(tmp_path):
    """The words of a merge that has a warning."""
    save_file({"m.weight": torch.ones(6, 4)}, tmp_path / "b.safetensors")
    factors = {"m.lora_A": torch.ones(2, 4), "m.lora_B": torch.ones(6, 2)}
    save_file(factors, tmp_path / "l.safetensors")
    paths = [str(tmp_path / name) for name in ("b.safetensors", "l.safetensors", "o.safetensors")]
    return ["merge", *paths[:2], "-o", paths[2], "--alpha", "4", "--no-verify"]


def test_quiet_prints_errors_only(merge):
    run = CliRunner().invoke
    written = run(main, [*merge, "-q"])
    assert (written.exit_code, written.stdout, written.stderr) == (0, "", "")
    refused = run(main, [*merge, "-q"])
    assert refused.exit_code == 6
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: ")
    shown = run(main, [*merge, "--force"])
    assert "note: nothing was verified" in shown.stderr
    as_json = json.loads(run(main, [*merge, "-q", "--force", "--json"]).stdout)
    assert "nothing was verified (--no-verify)" in as_json["warnings"]


def test_nothing_has_a_colour_in_a_pipe(merge):
    assert "\x1b[" not in CliRunner().invoke(main, merge).output
