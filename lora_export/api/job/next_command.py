"""The command after this one: a report ends with it, and the user copies it."""

from __future__ import annotations

import shlex
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.job.command_line import command_words
from lora_export.options import VERBS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.report.result import Report

_MERGES = ("merge", "onnx")


def next_command(verb: str, values: Mapping[str, object], report: Report) -> str:
    """Return the command to run after a report, quoted for a shell; "" where none is known to work.

    After a dry run it is the same command without --dry-run; after an export, the one that proves
    what was written; after any other proof, the one that shows what the file holds.

    verb: of the command that was run. values: its arguments, by keyword.
    """
    if report.dry_run:
        writing = _with_output(verb, values)
        return shlex.join(command_words(verb, writing)) if writing else ""
    # verify does not know new shards: with a base it expects the base's own.
    if verb in _MERGES and not report.checks and not values.get("max_shard_size"):
        taken = {option.name for option in VERBS["verify"]}
        shared = {name: value for name, value in values.items() if name in taken}
        return shlex.join(command_words("verify", {**shared, "artifact": report.output}))
    if verb in _MERGES:
        return shlex.join(command_words("verify", {"artifact": report.output}))
    if verb == "verify" and any(Path(report.output).glob("**/*.onnx")):
        return ""  # inspect looks at one file
    if verb in ("verify", "unmerge"):
        return shlex.join(command_words("inspect", {"path": report.output}))
    return report.next


def _with_output(verb: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments without dry_run, and with an output; empty where none can be named.

    An output that the call does not name is a new one in the current folder.
    """
    given = {name: value for name, value in values.items() if name != "dry_run"}
    if given.get("output") is not None:
        return given
    if given.get("kv_cache"):  # a file or a folder, which only the model shows
        return {}
    base = Path(str(values["base"]))
    is_file = base.is_file() and base.suffix != ".json"
    is_bare = verb == "onnx" and given.get("layout", "onnx") == "onnx"
    suffix = ".onnx" if is_bare else ".safetensors" if is_file and verb != "onnx" else ""
    stem = base.stem if base.is_file() else base.name
    names = (f"{stem or 'model'}-merged{'' if n == 1 else f'-{n}'}{suffix}" for n in count(1))
    return {**given, "output": next(name for name in names if not Path(name).exists())}
