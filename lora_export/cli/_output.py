"""Run one API call and print its outcome: text or JSON on stdout, errors on stderr, the status."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from lora_export.cli._progress import shown_progress
from lora_export.cli._terminal import coloured, is_coloured, print_message, text_width
from lora_export.errors import LoraExportError, UsageError, VerificationError
from lora_export.records import Problem
from lora_export.report.document import error_json, report_json
from lora_export.report.result import json_text, refused
from lora_export.report.text import next_text, report_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.records import Progress
    from lora_export.report.result import Report

    OnProgress = Callable[[Progress], None]

Value = TypeVar("Value")

INTERRUPTED = 130
TERMINATED = 143
_EXPLAINED = 3
"""Causes of one refusal of which each is named in a line of its own."""
_TRUE = ("1", "true", "t", "yes", "y", "on")
_REPORT = "This is a bug of lora-export. Please report it with the lines above and the command."


class Command(click.Command):
    """A command that prints its usage errors as JSON too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words as click does; print a refusal of --config as any other."""
        words = tuple(args)  # click removes words from its list while it parses
        try:
            with usage_errors_as_json(ctx, words):
                return super().parse_args(ctx, args)
        except LoraExportError as error:
            as_json = _is_json_asked(ctx, words)
            quiet, debug = "-q" in words or "--quiet" in words, "--debug" in words
            output = Output(ctx.info_name or "", as_json, quiet, verbose=False, debug=debug)
            output.refuse(error)


@contextmanager
def usage_errors_as_json(ctx: click.Context, words: Sequence[str]) -> Iterator[None]:
    """Print click's own errors as JSON on stdout, where --json or its environment variable is set.

    words: the command line. Where click reports an error it has parsed no --json, so the option is
        looked up in the words.
    """
    words = tuple(words)  # a copy: click removes words from its list while it parses
    try:
        yield
    except click.UsageError as error:
        if _is_json_asked(ctx, words):
            problem = Problem(
                error.format_message(),
                hint=f"{ctx.command_path} --help",
                cause="usage/command-line",
            )
            name = ctx.info_name or "" if ctx.parent else ""
            click.echo(json_text(error_json(name, "usage", (problem,))))
        raise


def _is_json_asked(ctx: click.Context, words: Sequence[str]) -> bool:
    """Return whether --json is among the words, in the environment, or in the file of --config."""
    if "--json" in words or (ctx.default_map or {}).get("as_json"):
        return True
    return os.environ.get("LORA_EXPORT_JSON", "").strip().lower() in _TRUE


@dataclass(frozen=True, slots=True)
class Output:
    """How a command prints its outcome."""

    #: The command's name, such as "merge".
    command: str
    as_json: bool
    quiet: bool
    verbose: bool
    debug: bool

    @classmethod
    def taken_from(cls, command: str, values: dict[str, Any]) -> Output:
        """Remove the values of `output_options` from a command's parameters, and return them."""
        names = ("as_json", "quiet", "verbose", "debug")
        return cls(command, **{name: values.pop(name) for name in names})

    def run(self, call: Callable[[OnProgress], Report]) -> NoReturn:
        """Call with a progress bar, print the outcome, and exit with its status.

        Raises:
            SystemExit: always; its code is the exit status.
        """
        self._print_report(self.value(call))
        sys.exit(0)

    def value(self, call: Callable[[OnProgress], Value]) -> Value:
        """Call with a progress bar, and return the value.

        Raises:
            SystemExit: the call raised; the outcome is printed, and the code is the exit status.
        """
        try:
            # stdout is for the result: text that the user's own model prints goes to stderr.
            with shown_progress(wanted=not self.quiet) as progress, redirect_stdout(sys.stderr):
                return call(progress)
        except LoraExportError as error:
            self.refuse(error)
        except KeyboardInterrupt:
            self._print_stop("interrupted", "interrupted; nothing was published")
            sys.exit(INTERRUPTED)
        except SystemExit as error:
            if error.code == TERMINATED:  # SIGTERM; see checkpoint.interrupts
                self._print_stop("interrupted", "terminated; nothing was published")
                raise
            self.refuse(_left_from_within(error))
        except BaseException as error:  # noqa: BLE001 - the last resort: status 1, our bug
            traceback.print_exc()
            self._print_stop("bug", f"{type(error).__name__}: {error}", hint=_REPORT)
            sys.exit(1)

    def refuse(self, error: LoraExportError) -> NoReturn:
        """Print why nothing was done, and exit with the status of the error."""
        self._print_refusal(error)
        sys.exit(error.status)

    def _print_stop(self, code: str, message: str, *, hint: str = "") -> None:
        if self.as_json:
            problem = Problem(message, hint=hint, cause=code)
            click.echo(json_text(error_json(self.command, code, (problem,))))
        click.echo(hint or message, err=True)

    def _print_report(self, report: Report) -> None:
        if self.as_json:
            click.echo(json_text(report_json(report)))
        elif not self.quiet:
            self._print_text(report)
        if not self.quiet:
            for warning in report.warnings:
                print_message(f"note: {warning}")
        if report.next and not self.as_json and not self.quiet:
            # After the notes, which are on stderr: a terminal then ends with it as a file does.
            click.echo(f"\n{next_text(report.next, text_width())}")

    def _print_text(self, report: Report) -> None:
        """Print all of the text but the next command."""
        paint = coloured if is_coloured() else None
        shown = replace(report, next="")
        click.echo(report_text(shown, verbose=self.verbose, width=text_width(), paint=paint))

    def _print_refusal(self, error: LoraExportError) -> None:
        """Print on stdout what the command had found, and on stderr why it refused."""
        if self.debug:
            traceback.print_exc()
        report = refused(self.command, error)
        if self.as_json:
            click.echo(json_text(report_json(report)))
        elif not self.quiet:
            self._print_text(report)
        if report.attribution:
            print_message(str(report.attribution))
        for line in refusal_lines(report.problems):
            print_message(line)
        if isinstance(error, VerificationError) and self.command != "verify":
            click.echo("nothing was published", err=True)
        if after := after_refusal(report.problems):
            click.echo(f"next: {after}", err=True)


def refusal_lines(problems: Sequence[Problem]) -> list[str]:
    """Return a line for each problem, with its hint where that is not the last one's.

    Then a line for each of the first causes, with the command that explains it.
    """
    last = problems[-1].hint
    shown = [replace(one, hint="") if one.hint == last else one for one in problems]
    commands = [command for command in _explaining(problems) if command != after_refusal(problems)]
    return [*(f"error: {problem}" for problem in shown), *(f"more: {one}" for one in commands)]


def after_refusal(problems: Sequence[Problem]) -> str:
    """Return what to do now: the last hint, else the command that explains the first cause."""
    return problems[-1].hint or next(iter(_explaining(problems)), "")


def _explaining(problems: Sequence[Problem]) -> list[str]:
    causes = [*dict.fromkeys(problem.cause for problem in problems if problem.cause)]
    return [f"lora-export explain {cause}" for cause in causes[:_EXPLAINED]]


def _left_from_within(error: SystemExit) -> UsageError:
    """Return the error for a sys.exit inside the call.

    The library never calls it, so the code that --model runs did.
    """
    return UsageError(
        f"sys.exit({error.code!r}) ended the run before it was done",
        hint="the code that --model names must return a model, and not call sys.exit",
        cause="usage/model-function",
    )
