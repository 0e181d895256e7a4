"""The call of a row: its verb, paths and keywords, and the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.job.command_line import command_words
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import LoraExportError
from lora_export.suites.running.installed import located

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.records import Progress
    from lora_export.report.result import Report
    from lora_export.suites.suite import Asked, Verb


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verb."""

    verb: Verb
    base: str
    """"" where an artefact is compared with its manifest alone."""
    adapters: tuple[str, ...]
    artefact: str
    """The path that is verified; "" for another verb."""
    options: Mapping[str, Any]
    """The keywords, without those that decide where the output goes."""
    required: bool
    """Whether the level "model" is required."""
    name: str
    """The name of the output; "" where nothing is written."""

    def run(self, folder: Path, progress: Callable[[Progress], None] | None) -> Report:
        """Call the verb; what it writes is in `folder` then.

        progress: called with each stage; None reports nothing.

        Raises:
            LoraExportError: as the verb does.
        """
        from lora_export import api

        if self.verb == "verify":
            named: dict[str, Any] = (
                {"base": self.base, "adapters": self.adapters} if self.base else {}
            )
            return api.verify(self.artefact, **named, **self.options, progress=progress)
        # Where --keep names a folder, the output of an earlier run is replaced.
        options = {**self.options, "force": (folder / self.name).exists()}
        run = api.merge if self.verb == "merge" else api.export_onnx
        return run(self.base, self.adapters, folder / self.name, **options, progress=progress)

    def command(self) -> str:
        """Return the command line, quoted for a shell; it writes into a new folder."""
        paths = {"base": self.base or None, "adapters": self.adapters}
        if self.verb == "verify":
            paths = {"artifact": self.artefact, **paths}
        required = {"require": "model"} if self.required else {}
        words = command_words(self.verb, {**paths, **self.options, **required})
        output = f' -o "$(mktemp -d)/{self.name}"' if self.name else ""
        return f"{shlex.join(words)}{output}"


def call_of(asked: Asked) -> Call:
    """Return the call of a row.

    Raises:
        UsageError, InputError: see installed.located.
    """
    case = asked.case
    base = located(case.base) if case.base else ""
    return Call(
        asked.verb,
        base,
        tuple(map(located, case.adapters)),
        located(asked.artefact) if case.artefact else "",
        asked.options(),
        "model" in case.require,
        _name(asked, base),
    )


def stem_of(asked: Asked) -> str:
    """Return the first part of the output's name, which no other row of the case has."""
    if asked.verb == "verify":
        return Path(asked.artefact).name
    kind, _, precision = asked.artefact.partition(":")
    return "merged" if kind == "merge" else f"model-{precision}" if precision else "model"


def _name(asked: Asked, base: str) -> str:
    """Return the name that the output must have: a folder's has no suffix."""
    if asked.verb == "verify":
        return ""
    stem = stem_of(asked)
    try:
        checkpoint = read_checkpoint(Path(base))
    except LoraExportError:
        return stem  # the verb refuses the base itself
    if asked.verb == "merge":
        return stem if checkpoint.layout == "folder" else f"{stem}.safetensors"
    options = asked.options()
    is_pair = options.get("kv_cache") and checkpoint.config.get("is_encoder_decoder")
    is_folder = is_pair or options.get("layout", "onnx") != "onnx"
    return stem if is_folder else f"{stem}.onnx"
