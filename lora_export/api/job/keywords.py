"""Check the keywords of a verb against the declared options, before any work begins.

Python itself checks no values of keywords. Behind `**settings` it checks no names either.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from lora_export.api.job.command_line import add_command
from lora_export.api.job.next_command import next_command
from lora_export.api.job.proof_options import ProofOptions
from lora_export.errors import FitError, LoraExportError, UsageError
from lora_export.options import ADAPTER, PROOF, VERBS
from lora_export.planning.request import AdapterOptions
from lora_export.records import Problem, Progress
from lora_export.refusals import with_way_out
from lora_export.report.result import Report

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.options import Option, Takes

OnProgress = Callable[[Progress], None]
"""Is called when a stage begins and when it advances, perhaps from another thread."""

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: Mapping[Takes, str] = {
    "text": "a text",
    "path": "a path",
    "factory": "a text",
    "number": "a number",
    "whole": "a whole number",
    "flag": "True or False",
    "either": "True, False or None",
    "blocks": "a text such as '1,0,1', or a list of True and False, one of them True",
}


def checked(verb: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that refuses unknown keywords of `verb`, and values of a wrong type.

    A report that the call returns then names the next command.

    Raises:
        UsageError: from the call, with every unknown keyword and every wrong value.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = signature.parameters
        options = {option.name: option for option in VERBS[verb]}
        places = [name for name, parameter in own.items() if parameter.kind is not _MANY]
        known = [*dict.fromkeys((*places, *options))]
        opposites = dict(_opposites(VERBS[verb]))

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            values = {**dict(zip(places, args, strict=False)), **kwargs}
            problems = [*_unknown(kwargs, known, opposites), *_wrong(values, options)]
            try:
                if problems:
                    raise UsageError.of(problems)
                found = function(*args, **kwargs)
            except LoraExportError as error:
                error.problems = tuple(map(with_way_out, error.problems))
                if isinstance(error, FitError | UsageError):
                    add_command(error, verb, values)
                raise
            if isinstance(found, Report):
                return cast("R", replace(found, next=next_command(verb, values, found)))
            return found

        # For help() and editors: every keyword by name, with its default.
        call.__signature__ = _spelled_out(signature, VERBS[verb])  # type: ignore[attr-defined]
        return call

    return decorate


def _spelled_out(signature: inspect.Signature, options: Sequence[Option]) -> inspect.Signature:
    """Return the signature with the declared keywords in the place of `**settings`."""
    own = [one for one in signature.parameters.values() if one.kind is not _MANY]
    named = {one.name for one in own}
    more = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=_annotation(option.name),
        )
        for option in options
        if option.name not in named
    ]
    return signature.replace(parameters=[*own, *more])


def _annotation(name: str) -> object:
    """Return the type of a shared keyword as `Settings` declares it."""
    declared = Settings.__annotations__[name]
    return getattr(declared, "__forward_arg__", declared)


_MANY = inspect.Parameter.VAR_KEYWORD


class Settings(AdapterOptions, total=False):
    """The keywords that merge, export_onnx and verify share; all of them have defaults."""

    #: The network's inputs, each as "input_ids=int64[batch,sequence]<30522".
    input: Sequence[str]
    #: An .npz file of your own probes.
    inputs: str | Path | None
    #: Absolute tolerance of the outputs; None takes the derived one.
    atol: float | None
    #: Tolerance relative to the largest output; None takes the derived one.
    rtol: float | None
    #: Seed of the probes, 0 or more.
    seed: int
    #: How far to prove: "model" runs the network as well, "weights" does not.
    proof: str
    #: "model" fails where the network cannot be run; None accepts a proof by weights.
    require: str | None


def adapter_options(settings: Settings, *, complete: bool = True) -> AdapterOptions:
    """Return the settings about adapters; `complete` adds the defaults of those not given."""
    proof = {option.name for option in PROOF}
    defaults = {option.name: option.default for option in ADAPTER} if complete else {}
    given = {name: value for name, value in settings.items() if name not in proof}
    return cast("AdapterOptions", {**defaults, **given})


def proof_options(settings: Settings, provider: Sequence[str] = ()) -> ProofOptions:
    """Return the settings about the proof, with the execution providers to verify with."""
    given: dict[str, Any] = {
        option.name: settings.get(option.name, option.default) for option in PROOF
    }
    return ProofOptions(**{**given, "input": tuple(given["input"])}, provider=tuple(provider))


def _opposites(options: Sequence[Option]) -> Iterator[tuple[str, str]]:
    """Yield every flag that has no keyword of its own, as a keyword, and what to write instead."""
    for option in options:
        if option.opposite:
            yield option.opposite.replace("-", "_"), f"{option.name}=False"


def _unknown(
    keywords: Mapping[str, object], known: Sequence[str], opposites: Mapping[str, str]
) -> Iterator[Problem]:
    for name in keywords:
        if name in opposites:  # the nearest name would mean the contrary
            yield Problem(
                f"unknown keyword {name!r}",
                hint=f"write {opposites[name]}",
                cause="usage/unknown-name",
            )
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
            yield Problem(f"unknown keyword {name!r}", hint=hint, cause="usage/unknown-name")


def _wrong(values: Mapping[str, object], options: Mapping[str, Option]) -> Iterator[Problem]:
    for name, value in values.items():
        if name in ("base", "artifact", "merged", "path", "suite") and value is not None:
            yield from _problem(name, value, "path")
        elif name == "adapters":
            yield from _problems_of_list(name, value, "path")
        elif option := options.get(name):
            yield from _of_option(option, value)


def _of_option(option: Option, value: object) -> Iterator[Problem]:
    if value is None and option.default in (None, ()) and not option.needed:
        return
    if option.many:
        yield from _problems_of_list(option.name, value, option.takes)
    elif option.takes == "choice":
        if value not in option.choices:
            hint = f"one of: {', '.join(option.choices)}"
            yield Problem(
                f"{option.name} is {value!r}", option.flag, hint, cause="usage/option-value"
            )
    else:
        yield from _problem(option.name, value, option.takes, option.least)


def _problems_of_list(name: str, value: object, takes: Takes) -> Iterator[Problem]:
    if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Sequence):
        yield Problem(
            f"{name} takes a list, not {value!r}",
            hint=f"{name}=[{value!r}]",
            cause="usage/option-value",
        )
        return
    for item in value:
        yield from _problem(name, item, takes)


def _problem(name: str, value: object, takes: Takes, least: int | None = None) -> Iterator[Problem]:
    if not _fits(value, takes):
        yield Problem(
            f"{name} is {value!r}", hint=f"it takes {_WORDS[takes]}", cause="usage/option-value"
        )
    elif least is not None and isinstance(value, Integral) and int(value) < least:
        yield Problem(
            f"{name} is {value!r}", hint=f"it takes {least} or more", cause="usage/option-value"
        )


def _fits(value: object, takes: Takes) -> bool:
    is_flag = isinstance(value, bool)
    if takes == "blocks":
        flags = isinstance(value, Sequence) and all(block in (0, 1) for block in value)
        return isinstance(value, str) or (flags and any(cast("Sequence[object]", value)))
    if takes in ("flag", "either"):
        return is_flag
    kinds: Mapping[Takes, type | tuple[type, ...]] = {
        "text": str,
        "path": (str, os.PathLike),
        "factory": str,
        "number": Real,
        "whole": Integral,
    }
    return isinstance(value, kinds[takes]) and not is_flag
