"""The display of the current stage: plain lines by the clock, a bar at a terminal, silence."""

import io
import sys
from contextlib import contextmanager, redirect_stderr

import pytest
from click.testing import CliRunner

from lora_export.cli import _progress, main
from lora_export.cli._progress import PlainLines, line_of, shown_progress
from lora_export.records import Progress
from lora_export.report.result import Report
from lora_export.report.stopwatch import Stopwatch


class Lines:
    """Plain lines with a clock that the test moves."""

    def __init__(self):
        self.written, self.now = [], 0.0
        self.show = PlainLines(self.written.append, lambda: self.now)

    def at(self, now, event=None):
        self.now = now
        if event:
            self.show(event)
        self.show.look(now)
        return self.written


def test_a_stage_is_named_after_two_seconds_and_then_every_ten():
    lines = Lines()
    merge = Progress("merge", 0, 4 * 10**9, "bytes")
    assert lines.at(0, merge) == []
    assert lines.at(1.9) == []
    lines.at(2, Progress("merge", 10**9, 4 * 10**9, "bytes"))
    lines.at(11.9)
    assert lines.written == ["merge: 2 s, 1.0 of 4.0 GB, about 6 s left"]
    lines.at(12)
    assert lines.written[1:] == ["merge: 12 s, 1.0 of 4.0 GB, about 36 s left"]
    lines.at(13, Progress("capture"))
    lines.at(14.9)
    assert len(lines.written) == 2
    lines.at(15)
    assert lines.written[2:] == ["capture: 2 s so far"]


@pytest.mark.parametrize("seconds", [0.1, 1.9])
def test_short_stages_are_silent(seconds):
    lines = Lines()
    for place in range(40):
        lines.at(place * seconds, Progress(f"stage {place}"))
    assert lines.written == []


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Progress("plan"), "plan: 5 s so far"),
        (Progress("merge", 0, 0, "bytes"), "merge: 5 s so far"),
        (Progress("proof as a model", 0, 7, "runs"), "proof as a model: 5 s, 0 of 7 runs"),
        (
            Progress("proof as a model", 5, 7, "runs"),
            "proof as a model: 5 s, 5 of 7 runs, about 2 s left",
        ),
        (
            Progress("hash", 2_500_000, 5_000_000, "bytes"),
            "hash: 5 s, 2.5 of 5.0 MB, about 5 s left",
        ),
        (Progress("hash", 10, 500, "bytes"), "hash: 5 s, 0.0 of 0.5 kB, about 245 s left"),
    ],
)
def test_a_line_has_the_work_and_the_time_left_where_they_are_known(event, line):
    assert line_of(event, 5.0) == line


def slow(*_args, progress, **_options):
    """Stand for a merge whose two stages take long."""
    clock = Stopwatch(progress)
    with clock("merge", "bytes") as advance:
        advance(1, 2)
        _progress.wait()
    with clock("proof as a model"), redirect_stderr(io.StringIO()):  # as around a capture
        _progress.wait()
    return Report("merge")


@contextmanager
def looked_at(shown):
    """Replace the thread that looks at the clock: look when the work says so, far in the future."""
    later = iter(range(10**6, 10**7, 10**5))
    _progress.wait = lambda: shown.look(next(later))
    yield shown


@pytest.mark.parametrize(
    ("words", "named"),
    [((), True), (("--json",), True), (("-q",), False), (("-q", "--json"), False)],
)
def test_lines_go_to_stderr_unless_quiet(words, named, monkeypatch):
    monkeypatch.setattr("lora_export.api.merge", slow)
    monkeypatch.setattr(_progress, "_watched", looked_at)
    monkeypatch.setattr(_progress, "wait", lambda: None, raising=False)
    result = CliRunner().invoke(main, ["merge", "a", "b", *words])
    assert result.exit_code == 0, result.output
    assert ("merge: " in result.stderr) is named
    assert ("proof as a model: " in result.stderr) is named
    assert "so far" not in result.stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_stage_with_a_bar_only_where_the_work_is_known(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    seen = {}

    def drawn(show, event):
        show(event)
        show.look(0.0)
        text = terminal.getvalue()
        terminal.truncate(0)
        return text

    with shown_progress(wanted=True) as show:
        seen["known"] = drawn(show, Progress("merge", 10**9, 4 * 10**9, "bytes"))
        seen["unknown"] = drawn(show, Progress("capture"))
    assert "merge" in seen["known"]
    assert "1.0 of 4.0 GB" in seen["known"]
    assert "━" in seen["known"]
    assert "capture" in seen["unknown"]
    assert "0:00:00" in seen["unknown"]
    assert "━" not in seen["unknown"]
    assert "merge" not in seen["unknown"]
    assert "?" not in seen["unknown"]
