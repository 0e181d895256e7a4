"""From the declared options to click's; each also has a variable LORA_EXPORT_<NAME>."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from lora_export.cli._config import take_config
from lora_export.options import INIT, OUTPUT, VERBS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lora_export.options import Option

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_AMBIENT = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
"""Where values come from that are meant for many runs: variables, and the file of --config."""


def declared(verb: str) -> Decorator:
    """Return a decorator that adds the options declared for `verb`, in the declared order."""
    return together(*(_click_option(option) for option in VERBS[verb]))


def given(
    context: click.Context,
    values: dict[str, Any],
    *,
    unfit: Collection[str] = (),
    no_variables: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values that the user gave; the verb itself has the defaults of the others.

    unfit: options that say nothing about these paths. Their values from the environment or from
        --config are left out; the verb refuses them where the command line has them.
    no_variables: options whose variables are meant for other commands.
    """
    sources = {name: context.get_parameter_source(name) for name in values}
    return {
        name: value
        for name, value in values.items()
        if sources[name] is not ParameterSource.DEFAULT
        and not (name in unfit and sources[name] in _AMBIENT)
        and not (name in no_variables and sources[name] is ParameterSource.ENVIRONMENT)
    }


def together(*decorators: Decorator) -> Decorator:
    """Return several decorators as one; --help shows their options in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):  # click lists the option added last first
            function = decorator(function)
        return function

    return decorate


def env_option(*names: str, **settings: Any) -> Decorator:
    """Return click.option with an environment variable named after the long option."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = f"LORA_EXPORT_{long.removeprefix('--').replace('-', '_').upper()}"
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def _click_option(option: Option) -> Decorator:
    flags = f"{option.flag}/--{option.opposite}" if option.opposite else option.flag
    short = [f"-{option.short}"] if option.short else []
    return env_option(
        *short,
        flags,
        option.name,
        default=None if option.many else option.default,
        multiple=option.many,
        required=option.needed,
        metavar=option.metavar,
        show_default=option.shown,
        help=option.help,
        **_type(option),
    )


def _type(option: Option) -> dict[str, Any]:
    if option.takes in ("flag", "either"):
        return {"is_flag": True}
    if option.likely or option.takes == "factory":
        return {"shell_complete": partial(_completed, option)}
    types: dict[str, Any] = {
        "path": click.Path(path_type=Path),
        "number": float,
        "whole": int if option.least is None else click.IntRange(min=option.least),
        "choice": click.Choice(option.choices),
    }
    return {"type": types.get(option.takes)}


def _completed(
    option: Option, _context: click.Context, _param: click.Parameter, start: str
) -> list[CompletionItem]:
    """Return what a shell offers for a text: files for a factory, else the likely values."""
    if option.takes == "factory":
        return [CompletionItem(start, type="file")]
    return [CompletionItem(value) for value in option.likely if value.startswith(start)]


output_options = together(
    *map(_click_option, OUTPUT),
    env_option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=take_config,
        metavar="FILE",
        help="TOML file with any of these options.",
    ),
)
"""Adds the options that every command has."""

init_options = together(*map(_click_option, INIT))
"""Adds the options that write a first suite."""
