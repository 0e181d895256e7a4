"""The group of commands, with the exit status of every outcome."""

from __future__ import annotations

import atexit
import difflib
import errno
import importlib
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lora_export.checkpoint.output.interrupts import orderly_interrupts, status_of
from lora_export.cli._output import INTERRUPTED, usage_errors_as_json
from lora_export.cli._streams import (
    echo_error,
    lose_stdout,
    open_closed_streams,
    report_lost_output,
    show_error,
)
from lora_export.version import VERSION

if TYPE_CHECKING:
    from lora_export.checkpoint.output.interrupts import Interrupts

_COMMANDS = ("merge", "onnx", "verify", "unmerge", "inspect", "parity", "explain")


class _Commands(click.Group):
    """The commands, each imported at its first use, so that --help is quick."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run the command of this process, and end the process.

        This is for the program, which calls the group without arguments. Other callers get click's
        own SystemExit.
        """
        if args or settings:
            return super().__call__(*args, **settings)
        open_closed_streams()
        with orderly_interrupts(is_last=True) as interrupts:
            status = self._status(interrupts)
            interrupts.settle()  # the outcome is known and printed: a signal comes too late
            if "torch" in sys.modules:
                _leave(status)
        raise SystemExit(status)

    def _status(self, interrupts: Interrupts) -> int:
        """Run the command; return its exit status.

        A signal that no command has reported is reported here: it came while one was imported.
        """
        stdout = sys.stdout
        try:
            status = self.main(standalone_mode=False) or 0
        except click.ClickException as error:
            show_error(error)
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if sys.stdout is not stdout:  # click's wrapper: the reader of a pipe has gone
                sys.stdout, status = stdout, 0
                lose_stdout(BrokenPipeError(errno.EPIPE, ""))
        except OSError as error:  # --help or --version could not be printed
            lose_stdout(error)
            status = report_lost_output()
        if interrupts.came is not None:
            status = status_of(interrupts.came)
            echo_error("interrupted; nothing was published")
        return status or report_lost_output()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with usage_errors_as_json(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        with usage_errors_as_json(ctx, args):
            try:
                return super().resolve_command(ctx, args)
            except click.UsageError as error:
                near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
                if near and near[0] not in error.message:  # newer versions of click name it
                    error.message += f" Did you mean {near[0]!r}?"  # type: ignore[misc]
                raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lora_export.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command


def _leave(status: int) -> NoReturn:
    """End the process at once: Python's own end takes 0.3 s to unload torch's modules."""
    atexit._run_exitfuncs()  # noqa: SLF001 - what os._exit leaves out
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, full or not there
            stream.flush()
    os._exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lora-export")
def main() -> None:
    """Merge a trained LoRA into its base, prove the result, and write it without overhead.

    Exit status: 0 done, 1 a bug of lora-export, 2 usage, 3 input refused, 4 adapter and base
    do not fit, 5 a check failed (nothing was published), 6 output refused, 7 disk or
    permission, 8 over a limit, 15 an extra is missing, 130 interrupted, 143 terminated.
    """
