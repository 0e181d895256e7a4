"""Run one API call and tell its outcome: text or JSON on stdout, errors on stderr, the status."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lora_export.cli._progress import byte_progress
from lora_export.errors import LoraExportError, VerificationError
from lora_export.records import Problem
from lora_export.report.result import error_json, report_json, verification_json
from lora_export.report.text import checks_text, report_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.report.result import Report

    Progress = Callable[[int, int], None]

INTERRUPTED = 130
_REPORT = "This is a bug of lora-export. Please report it with the lines above and the command."


class Command(click.Command):
    """A command whose usage errors are told as JSON too, when --json is among the words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does."""
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if as_json:
                problem = Problem(error.format_message(), hint=f"{ctx.command_path} --help")
                click.echo(json.dumps(error_json(self.name or "", "usage", (problem,)), indent=2))
            raise


@dataclass(frozen=True, slots=True)
class Output:
    """How a command is to tell its outcome."""

    command: str
    as_json: bool
    quiet: bool
    verbose: bool
    debug: bool

    @classmethod
    def taken_from(cls, command: str, values: dict[str, Any]) -> Output:
        """Take the values of `output_options` out of a command's parameters."""
        names = ("as_json", "quiet", "verbose", "debug")
        return cls(command, **{name: values.pop(name) for name in names})

    def run(self, call: Callable[[Progress], Report]) -> NoReturn:
        """Call with a progress bar, tell, and leave with the exit status that the outcome has."""
        try:
            with byte_progress(wanted=not self.quiet) as progress:
                report = call(progress)
        except LoraExportError as error:
            self._tell_refusal(error)
            sys.exit(error.status)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was published", err=True)
            sys.exit(INTERRUPTED)
        except Exception:  # noqa: BLE001 - the last resort: status 1 says that it is our bug
            traceback.print_exc()
            click.echo(_REPORT, err=True)
            sys.exit(1)
        self._tell(report)
        sys.exit(0)

    def _tell(self, report: Report) -> None:
        if self.as_json:
            click.echo(json.dumps(report_json(report), indent=2))
        elif not self.quiet:
            click.echo(report_text(report, verbose=self.verbose))
        for warning in report.warnings:
            click.echo(f"note: {warning}", err=True)

    def _tell_refusal(self, error: LoraExportError) -> None:
        if self.debug:
            traceback.print_exc()
        checks = error.checks if isinstance(error, VerificationError) else ()
        if self.as_json:
            document = error_json(self.command, error.code, error.problems)
            if checks:
                document["verification"] = verification_json(checks)
            click.echo(json.dumps(document, indent=2))
        elif checks and not self.quiet:
            click.echo(checks_text(checks))
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        if isinstance(error, VerificationError):
            click.echo("nothing was published", err=True)
