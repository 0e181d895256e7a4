"""The JSON schema of suites, made from the declared options: editors complete and check by it.

`python -m lora_export.suites.reading.suite_schema` writes it into the package again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.suites.reading.expected_keys import STATUSES
from lora_export.suites.reading.read_suite import FORMAT, LEVELS
from lora_export.suites.reading.suite_options import OPTIONS
from lora_export.suites.suite import MADE

if TYPE_CHECKING:
    from lora_export.options import Option

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_TYPES: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "path": _TEXT,
    "factory": _TEXT,
    "choice": _TEXT,
    "number": {"type": "number"},
    "whole": {"type": "integer"},
    "flag": {"type": "boolean"},
    "either": {"type": "boolean"},
    "blocks": {"anyOf": [_TEXT, {"type": "array", "items": {"type": ["boolean", "integer"]}}]},
}


def suite_schema() -> dict[str, Any]:
    """Return the schema (draft 7, which editors of TOML know)."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A parity suite of lora-export",
        "type": "object",
        "additionalProperties": False,
        "required": ["format", "case"],
        "properties": {
            "format": {"const": FORMAT, "description": "The form of this file."},
            "defaults": {**_table({}), "description": "What every case has, unless it says else."},
            "models": {
                "type": "object",
                "additionalProperties": _table({}),
                "description": "Bases by name, for `use`.",
            },
            "case": {"type": "array", "minItems": 1, "items": _case()},
        },
    }


def _case() -> dict[str, Any]:
    own = {
        "name": {**_TEXT, "description": "The name of the case, which no other has."},
        "use": {**_TEXT, "description": "The model of [models.NAME] that the case takes."},
        "artefacts": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"enum": list(MADE)},
            "description": "What is made and proven, a row each.",
        },
        "artefact": {**_TEXT, "description": "What somebody else made, and is verified."},
        "expect": _expect(),
    }
    return {**_table(own), "required": ["name"]}


def _expect() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "exit": {"enum": list(STATUSES), "description": "The exit status of the command."},
            "cause": {**_TEXT, "description": "A part of the verdict, or the code of a finding."},
            "sha256": {**_TEXT, "description": "A file of sha256sum; --update writes it."},
            "max_error": {"type": "number", "minimum": 0, "description": "Of the outputs."},
            "size_below": {
                "type": ["string", "integer"],
                "description": 'Bytes of all files, such as "30MB".',
            },
        },
        "description": "What must come out, beside the proof.",
    }


def _table(own: dict[str, Any]) -> dict[str, Any]:
    shared = {
        "base": {**_TEXT, "description": "A folder or file, or package:NAME/PATH."},
        "adapters": {**_TEXTS, "description": "What is merged into the base."},
        "require": {
            "type": "array",
            "items": {"enum": list(LEVELS)},
            "description": "Levels of the proof that must be proven.",
        },
        "extras": {**_TEXTS, "description": "What must be installed, or the case is skipped."},
    }
    options: dict[str, Any] = {}
    for option in OPTIONS:
        options[option.flag.removeprefix("--")] = _option(option)
        if option.opposite:
            options[option.opposite] = _option(option)
    properties = {**own, **shared, **options}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _option(option: Option) -> dict[str, Any]:
    one: dict[str, Any] = (
        {"enum": list(option.choices)} if option.choices else dict(_TYPES[option.takes])
    )
    if option.least is not None:
        one["minimum"] = option.least
    if option.many:
        one = {"anyOf": [one, {"type": "array", "items": one}]}
    return {**one, "description": option.help}


def schema_text() -> str:
    """Return the schema as the package has it."""
    return json.dumps(suite_schema(), indent=1) + "\n"


if __name__ == "__main__":
    place = Path(__file__).parents[1] / "suite.schema.json"
    place.write_text(schema_text(), encoding="utf-8")
