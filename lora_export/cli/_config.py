"""The option --config: a user's file of options, as defaults below the environment's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.option_tables import read_options
from lora_export.options import OUTPUT, VERBS
from lora_export.toml_file import read_toml

if TYPE_CHECKING:
    from pathlib import Path

    import click


def take_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Make the options of a file the command's defaults; click takes --config before all others.

    Raises:
        InputError, UsageError, StorageError: see `configured`.
    """
    if path and context.info_name and not context.resilient_parsing:
        context.default_map = configured(path, context.info_name)


def configured(path: Path, verb: str) -> dict[str, Any]:
    """Return the values that a file has for `verb`, by the options' names.

    A key of the document is for every command that has such an option, a table `[verb]` for that
    command alone, and it wins. `parity` takes options that other commands have too from its table
    alone. The tables of all commands are checked.

    Raises:
        InputError, StorageError: the file cannot be read.
        UsageError: it is no TOML, or a key or value is wrong; all of them are named.
    """
    file = read_toml(path)
    # `verify` is a table, and an option of merge and onnx as well.
    tables = [name for name in VERBS if isinstance(file.content.get(name, {}), dict)]
    every = [option for options in VERBS.values() for option in options]
    values, problems = read_options(file, (), (*every, *OUTPUT), others=tables)
    own = {*_names(verb), *(option.name for option in OUTPUT)}
    if verb == "parity":  # its --strict and --report are others than those of a merge
        own -= {name for other in VERBS if other != verb for name in _names(other)}
    values = {name: value for name, value in values.items() if name in own}
    for table in tables:
        if table in file.content:
            more, wrong = read_options(file, (table,), (*VERBS[table], *OUTPUT))
            problems += wrong
            values |= more if table == verb else {}
    if problems:
        raise UsageError.of(problems)
    return values


def _names(verb: str) -> set[str]:
    return {option.name for option in VERBS[verb]}
