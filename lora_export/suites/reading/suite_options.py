"""Which options of the verbs a suite may give, and why it may not give the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.options import VERBS
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.options import Option
    from lora_export.toml_file import Place, TomlFile

_OUTPUTS = "the suite chooses its outputs; parity --keep DIR keeps them"
_PROOF = "a suite proves every row"

_REFUSED = {
    "output": _OUTPUTS,
    "force": _OUTPUTS,
    "undo": _OUTPUTS,
    "report": "parity --report FILE writes one page of all rows",
    "dry_run": _PROOF,
    "verify": _PROOF,
}
"""Options that a suite may not give, and why."""

_OWN = ("base", "adapters", "require")
"""Options that are keys of a case, with values of their own."""


def _options() -> tuple[Option, ...]:
    found: dict[str, Option] = {}
    for verb in ("merge", "onnx", "verify"):
        for option in VERBS[verb]:
            if option.name not in _REFUSED and option.name not in _OWN:
                found.setdefault(option.name, option)
    return tuple(found.values())


OPTIONS = _options()
"""The options that a suite may give."""


def refused_options(file: TomlFile, place: Place, table: Mapping[str, Any]) -> dict[str, Problem]:
    """Return a problem for every option in a table that a suite may not give, by its key."""
    return {
        key: Problem(
            f"{key} is no option of a suite", file.at(*place, key), why, cause="usage/suite"
        )
        for key, why in _refused_keys().items()
        if key in table
    }


def _refused_keys() -> dict[str, str]:
    found: dict[str, str] = {}
    for option in (option for verb in ("merge", "onnx") for option in VERBS[verb]):
        if option.name in _REFUSED:
            for flag in filter(None, (option.flag.removeprefix("--"), option.opposite)):
                found[flag] = _REFUSED[option.name]
    return {**found, "adapter": 'write adapters = ["..."]'}
