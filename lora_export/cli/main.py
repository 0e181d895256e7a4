"""The group of commands, and the exit status of everything that can happen."""

from __future__ import annotations

import atexit
import gc
import importlib

import click

import lora_export
from lora_export.cli._output import usage_errors_as_json

# The process ends: what torch has imported needs no last look for garbage, which takes 0.2 s.
atexit.register(gc.freeze)

_COMMANDS = ("merge", "onnx", "verify", "unmerge", "inspect")


class _Commands(click.Group):
    """Loads a command's file when it is called for, so that --help is quick."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with usage_errors_as_json(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        with usage_errors_as_json(ctx, args):
            return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lora_export.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lora_export.__version__, prog_name="lora-export")
def main() -> None:
    """Merge a trained LoRA into its base, prove the result, and write it without overhead.

    Exit status: 0 done, 1 a bug of ours, 2 usage, 3 input refused, 4 adapter and base do
    not fit, 5 verification says no (nothing was published), 6 output refused, 7 disk or
    permission, 8 over a limit, 15 an extra is missing, 130 interrupted.
    """
