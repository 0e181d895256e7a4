"""Run one API call and print its outcome: text or JSON on stdout, errors on stderr, the status."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from lora_export.checkpoint.output.interrupts import orderly_interrupts
from lora_export.cli._progress import shown_progress
from lora_export.cli._streams import echo, echo_error, report_lost_output
from lora_export.cli._terminal import coloured, is_coloured, print_message, text_width
from lora_export.errors import LoraExportError, UsageError, VerificationError, first_problems
from lora_export.records import Problem
from lora_export.refusals import with_way_out
from lora_export.report.document import error_json, report_json
from lora_export.report.result import json_text, refused
from lora_export.report.sentences import after_refusal, explaining
from lora_export.report.text import next_text, report_text
from lora_export.shown import HINT_MOST, shown, shown_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.checkpoint.output.interrupts import Interrupts
    from lora_export.records import Progress
    from lora_export.report.result import Report

    OnProgress = Callable[[Progress], None]

Value = TypeVar("Value")

INTERRUPTED = 130
TERMINATED = 143
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
            error.problems = tuple(map(with_way_out, error.problems))
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
        if isinstance(error, click.BadParameter):
            _name_variable(error)
        if _is_json_asked(ctx, words):
            problem = Problem(
                error.format_message(),
                hint=f"{ctx.command_path} --help",
                cause="usage/command-line",
            )
            name = ctx.info_name or "" if ctx.parent else ""
            echo(json_text(error_json(name, "usage", (problem,))))
        # A word may be the name of a file, by a pattern of the shell.
        error.message = shown(error.message)  # type: ignore[misc]
        raise


def _name_variable(error: click.BadParameter) -> None:
    """Name the environment variable that a wrong value is from, and not its option."""
    param, context = error.param, error.ctx
    if not (context and param and param.name and isinstance(param.envvar, str)):
        return
    if context.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
        error.param_hint = param.envvar


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
        sys.exit(self._status(call, self._printed))

    def value(self, call: Callable[[OnProgress], Value]) -> Value:
        """Call with a progress bar, and return the value.

        Raises:
            SystemExit: the call raised; the outcome is printed, and the code is the exit status.
        """
        found: list[Value] = []

        def keep(value: Value) -> int:
            found.append(value)
            return 0

        status = self._status(call, keep)
        if not found:
            sys.exit(status)
        return found[0]

    def _status(self, call: Callable[[OnProgress], Value], then: Callable[[Value], int]) -> int:
        """Call, let `then` print the value and return a status; return the status of the end."""
        with orderly_interrupts() as interrupts:
            return self._ended(partial(self._outcome, call, then), interrupts)

    def _ended(self, outcome: Callable[[Interrupts], int], interrupts: Interrupts) -> int:
        """Return the status of an outcome, also where its printing was stopped or failed."""
        try:
            status = outcome(interrupts)
        except (KeyboardInterrupt, SystemExit) as stop:
            # A result that is in place stands, and so does its status.
            status = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
            status = 0 if interrupts.is_settled else status
            interrupts.dismiss()
        return status or report_lost_output()

    def _outcome(
        self,
        call: Callable[[OnProgress], Value],
        then: Callable[[Value], int],
        interrupts: Interrupts,
    ) -> int:
        """Call, print what came of it, and return the exit status."""
        try:
            found = self._called(call, interrupts)
        except LoraExportError as error:
            self._print_refusal(error)
            return error.status
        except KeyboardInterrupt:
            interrupts.dismiss()
            self._print_stop("interrupted", "interrupted; nothing was published")
            return INTERRUPTED
        except SystemExit as error:
            if error.code != TERMINATED:  # SIGTERM; see checkpoint.output.interrupts
                self._print_refusal(_left_from_within(error))
                return UsageError.status
            interrupts.dismiss()
            self._print_stop("interrupted", "terminated; nothing was published")
            return TERMINATED
        except BaseException as error:  # noqa: BLE001 - the last resort: status 1, our bug
            echo_error(traceback.format_exc())
            self._print_stop("bug", f"{type(error).__name__}: {error}", hint=_REPORT)
            return 1
        interrupts.release()
        return then(found)

    def _printed(self, report: Report) -> int:
        self._print_report(report)
        return 0

    def _called(self, call: Callable[[OnProgress], Value], interrupts: Interrupts) -> Value:
        # stdout is for the result: text that the user's own model prints goes to stderr.
        with (
            interrupts.answered(),
            shown_progress(wanted=not self.quiet) as progress,
            redirect_stdout(sys.stderr),
        ):
            return call(progress)

    def refuse(self, error: LoraExportError) -> NoReturn:
        """Print why nothing was done, and exit with the status of the error."""
        self._print_refusal(error)
        sys.exit(error.status)

    def _print_stop(self, code: str, message: str, *, hint: str = "") -> None:
        if self.as_json:
            problem = Problem(message, hint=hint, cause=code)
            echo(json_text(error_json(self.command, code, (problem,))))
        echo_error(hint or message)

    def _print_report(self, report: Report) -> None:
        if self.as_json:
            echo(json_text(report_json(report)))
        elif not self.quiet:
            self._print_text(report)
        if not self.quiet:
            for warning in report.warnings:
                print_message(shown_line(f"note: {warning}", HINT_MOST))
        if report.next and not self.as_json and not self.quiet:
            # After the notes, which are on stderr: a terminal then ends with it as a file does.
            echo(f"\n{next_text(report.next, text_width())}")

    def _print_text(self, report: Report) -> None:
        """Print all of the text but the next command."""
        paint = coloured if is_coloured() else None
        most = replace(report, next="")
        echo(report_text(most, verbose=self.verbose, width=text_width(), paint=paint))

    def _print_refusal(self, error: LoraExportError) -> None:
        """Print on stdout what the command had found, and on stderr why it refused."""
        if self.debug:
            echo_error(traceback.format_exc())
        report = refused(self.command, error)
        if self.as_json:
            echo(json_text(report_json(report)))
        elif not self.quiet:
            self._print_text(report)
        if report.attribution:
            print_message(str(report.attribution))
        for line in refusal_lines(report.problems):
            print_message(line)
        if isinstance(error, VerificationError) and self.command != "verify":
            echo_error("nothing was published")
        if after := after_refusal(report.problems):
            echo_error(shown_line(f"next: {after}", HINT_MOST))


def refusal_lines(problems: Sequence[Problem]) -> list[str]:
    """Return a line for each problem, with its hint where that is not the last one's.

    Then a line for each of the first causes, with the command that explains it.
    """
    last = problems[-1].hint
    listed = [replace(one, hint="") if one.hint == last else one for one in problems]
    commands = [command for command in explaining(problems) if command != after_refusal(problems)]
    return [
        *(f"error: {text}" for text in first_problems(listed)),
        *(f"more: {one}" for one in commands),
    ]


def _left_from_within(error: SystemExit) -> UsageError:
    """Return the error for a sys.exit inside the call.

    The library never calls it, so the code that --model runs did.
    """
    return UsageError(
        f"sys.exit({error.code!r}) ended the run before it was done",
        hint="the code that --model names must return a model, and not call sys.exit",
        cause="usage/model-function",
    )
