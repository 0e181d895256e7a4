"""From the declared options to click's; each also has a variable LORA_EXPORT_<NAME>."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lora_export.options import OUTPUT, VERBS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.options import Option

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_DEFAULTS = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def declared(verb: str) -> Decorator:
    """Return a decorator that adds the options declared for `verb`, in the declared order."""
    return together(*(_click_option(option) for option in VERBS[verb]))


def given(context: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the user gave; the verb itself has the defaults of the others."""
    return {k: v for k, v in values.items() if context.get_parameter_source(k) not in _DEFAULTS}


def together(*decorators: Decorator) -> Decorator:
    """Return several decorators as one; --help shows their options in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):  # click lists the option added last first
            function = decorator(function)
        return function

    return decorate


def _option(*names: str, **settings: Any) -> Decorator:
    """Return click.option with an environment variable named after the long option."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = f"LORA_EXPORT_{long.removeprefix('--').replace('-', '_').upper()}"
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def _click_option(option: Option) -> Decorator:
    flags = f"{option.flag}/--{option.opposite}" if option.opposite else option.flag
    short = [f"-{option.short}"] if option.short else []
    return _option(
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
    types: dict[str, Any] = {
        "path": click.Path(path_type=Path),
        "number": float,
        "whole": int if option.least is None else click.IntRange(min=option.least),
        "choice": click.Choice(option.choices),
    }
    return {"type": types.get(option.takes)}


output_options = together(*map(_click_option, OUTPUT))
"""Adds the options of how a command prints its outcome."""
