"""The group of commands, with the exit status of every outcome."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from typing import Any

import click

from lora_export.cli._output import usage_errors_as_json
from lora_export.version import VERSION

_COMMANDS = ("merge", "onnx", "verify", "unmerge", "inspect", "parity", "explain")


class _Commands(click.Group):
    """The commands, each imported at its first use, so that --help is quick."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run the command, and end the process at once where torch was loaded.

        This is for the program, which calls the group without arguments. Other callers get click's
        own SystemExit.
        """
        try:
            return super().__call__(*args, **settings)
        except SystemExit as end:
            if not args and not settings and "torch" in sys.modules:
                _leave(end.code)
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with usage_errors_as_json(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        with usage_errors_as_json(ctx, args):
            return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lora_export.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command


def _leave(status: object) -> None:
    """End the process at once: Python's own end takes 0.3 s to unload torch's modules.

    Where the status is no number, or the output cannot be written, this does nothing. Python then
    ends the process, and reports the failed write.
    """
    if not isinstance(status, int):
        return
    atexit._run_exitfuncs()  # noqa: SLF001 - what os._exit leaves out
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lora-export")
def main() -> None:
    """Merge a trained LoRA into its base, prove the result, and write it without overhead.

    Exit status: 0 done, 1 a bug of lora-export, 2 usage, 3 input refused, 4 adapter and base
    do not fit, 5 a check failed (nothing was published), 6 output refused, 7 disk or
    permission, 8 over a limit, 15 an extra is missing, 130 interrupted.
    """
