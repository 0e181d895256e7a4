"""Write a first suite for a base and its adapters: what --init gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.reading import system_errors
from lora_export.errors import FitError, OutputError, UsageError
from lora_export.models.choose import why_no_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = Path(__file__).parents[1] / "suite.schema.json"
"""The schema of suites for editors; see suite_schema."""

_TEXT = """\
#:schema {schema}
# What must hold: run it by `lora-export parity {name}`. Paths are relative to this file.
format = 1

[[case]]
name = {case}
base = {base}
adapters = [{adapters}]
artefacts = [{artefacts}]
"""
_GRAPH = """\
# For ONNX, name the function that builds the network, and add "onnx" to artefacts:
# model = "model.py:build"
"""
_GENERATIVE = """\
# A graph that generates token by token, with its past keys and values:
# kv-cache = true
"""
_MORE = """
# The same merge, as somebody else made it: without `artefacts`, with the path of the result.
# [[case]]
# name = "release"
# base = {base}
# adapters = [{adapters}]
# artefact = "path/to/merged"
"""


def schema_of(suite: Path) -> Path:
    """Return where the schema of a first suite is written."""
    return suite.with_suffix(".schema.json")


def write_first_suite(base: Path, adapters: Sequence[Path], suite: Path) -> list[str]:
    """Write a suite with one case, and return the options whose values no file holds.

    The case makes what can be made: a merge, and ONNX where the base is a folder of transformers.

    Raises:
        OutputError: there is such a file already.
        StorageError: the file cannot be written.
        InputError, FitError, LimitError: base or adapters are refused.
    """
    if suite.exists():
        raise OutputError(
            "exists already",
            where=str(suite),
            hint="-o SUITE.toml names another",
            cause="output/exists",
        )
    asks = _missing_facts(base, adapters)
    checkpoint = read_checkpoint(base)
    has_model = not why_no_model(checkpoint)
    folder, schema = suite.absolute().parent, schema_of(suite)
    words = {
        "schema": schema.name,
        "name": suite,
        "case": json.dumps(adapters[0].resolve().stem, ensure_ascii=False),
        "base": _quoted(base, folder),
        "adapters": ", ".join(_quoted(path, folder) for path in adapters),
        "artefacts": '"merge", "onnx"' if has_model else '"merge"',
    }
    text = _TEXT.format(**words)
    text += "".join(f"# {_asked(flag)}  # of the training; no file holds it\n" for flag in asks)
    if has_model and is_generative(checkpoint.config):
        text += _GENERATIVE
    text += ("" if has_model else _GRAPH) + _MORE.format(**words)
    with system_errors(suite, "write"):
        # Beside the suite, so that the editors of all who share it find the schema.
        schema.write_bytes(SCHEMA.read_bytes())
        suite.write_text(text, encoding="utf-8")
    return asks


def is_generative(config: Mapping[str, Any]) -> bool:
    """Return whether a config is that of a model that generates text."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(one).endswith("ForCausalLM") for one in names)


def _missing_facts(base: Path, adapters: Sequence[Path]) -> list[str]:
    """Return the flags of the facts that a merge would need, each with a word for its value."""
    from lora_export.api import merge

    try:
        merge(base, [*adapters], dry_run=True)
    except (UsageError, FitError) as error:
        asks = [problem.asks for problem in error.problems if problem.asks]
        if not asks:
            raise
        return [*dict.fromkeys(asks)]
    return []


def _asked(flag: str) -> str:
    """Return a flag with its value, such as `--alpha ALPHA`, as a line of TOML."""
    name, _, value = flag.partition(" ")
    return f"{name.removeprefix('--')} = {value or 'true'}"


def _quoted(path: Path, folder: Path) -> str:
    """Return a path in quotes, relative to the suite's folder where it is not far away."""
    whole = path.absolute()
    near = os.path.relpath(whole, folder)
    return json.dumps(str(whole) if near.count("..") > 2 else near, ensure_ascii=False)
