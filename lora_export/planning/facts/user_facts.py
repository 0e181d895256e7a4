"""The facts that an adapter file lacks, from options, an --hparams file or a user's model.

Facts are never guessed: a missing fact is an error, and so are two sources that disagree.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError, StorageError, UsageError
from lora_export.layers import all_kinds
from lora_export.planning.names.base_names import without_wrappers
from lora_export.records import Facts, Problem
from lora_export.report.columns import counted
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    Patterns = tuple[tuple[str, Facts], ...]

_COUNTS = ("n_head", "n_query_groups")
_KEYS = ("alpha", "enable_lora", "fan_in_fan_out", "kind", *_COUNTS)


@dataclass(frozen=True, slots=True)
class FactTable:
    """Facts by module, from every source; a lookup notes its sources in `matched` and `taken`."""

    #: Facts for every module, from the command line and --hparams.
    top: Facts = field(default_factory=Facts)
    #: (glob on the base's module name, facts that override `top`); the first match wins.
    patterns: Patterns = ()
    #: Facts from the user's model, by name without wrappers or by the base's own name.
    modules: Mapping[str, Facts] = field(default_factory=dict)
    #: Facts from a manifest, by adapter and module.
    recorded: Mapping[tuple[str, str], Facts] = field(default_factory=dict)
    #: The part of `top` that comes from the command line.
    options: Facts = field(default_factory=Facts)
    #: The patterns that matched a module.
    matched: set[str] = field(default_factory=set, compare=False)
    #: The names of the facts that only a manifest gives, by module.
    taken: dict[str, list[str]] = field(default_factory=dict, compare=False)

    @classmethod
    def joined(
        cls,
        options: Facts,
        top: Facts,
        patterns: Patterns,
        modules: Mapping[str, Facts],
        *,
        recorded: Mapping[tuple[str, str], Facts] | None = None,
    ) -> FactTable:
        """Join the options with the result of `read_hparams`, whose top level must not differ.

        Raises:
            UsageError: they contradict each other.
        """
        problems = [
            Problem(
                f"{key} is {_plain(there)} here, but the command has {_option(key, here)}",
                top.source,
                "drop one of them; a [[module]] table may differ from the option",
                cause="usage/facts-contradict",
            )
            for key, here, there in _differences(options, top)
        ]
        if problems:
            raise UsageError.of(problems)
        return cls(overlay(options, top), patterns, modules, recorded or {}, options)

    def overridden(self, modules: Iterable[str]) -> list[str]:
        """Describe where a table of the file overrides an option for `modules`."""
        found: Counter[tuple[str, str]] = Counter()
        for facts in filter(None, map(self._table, modules)):
            for key, here, there in _differences(self.options, facts):
                reason = f"from {facts.source} overrides {_option(key, here)}"
                found[f"{key}={_plain(there)}", reason] += 1
        return [f"{v} for {counted(n, 'module')} {why}" for (v, why), n in found.items()]

    def _table(self, module: str) -> Facts | None:
        """Return the first [[module]] table whose pattern fits; note every one that fits."""
        matching = [(p, facts) for p, facts in self.patterns if fnmatchcase(module, p)]
        self.matched.update(pattern for pattern, _ in matching)
        return matching[0][1] if matching else None

    def by_user(self, module: str) -> Facts:
        """Return the facts of the module from options and --hparams, without model or manifest."""
        table = self._table(module)
        return overlay(table, self.top) if table else self.top

    def of(self, module: str, adapter: str = "", built: Facts | None = None) -> Facts:
        """Return the known facts about the update that `adapter` has for `module`.

        built: the architecture's facts about the module; None where they are not known.

        Raises:
            UsageError: two of architecture, model (or manifest) and options contradict each other.
        """
        by_user = self.by_user(module)
        built = built or Facts()
        read = self.modules.get(module, self.modules.get(without_wrappers(module)))
        if read is None and (read := self.recorded.get((adapter, module))):
            new = [key for key in _KEYS if getattr(overlay(by_user, built), key) is None]
            if keys := [key for key in new if getattr(read, key) is not None]:
                self.taken[module] = keys
        read = read or Facts()
        agreed(module, built, read, _BUILT)
        agreed(module, built, by_user, _BUILT)
        known = overlay(agreed(module, read, by_user), built)
        sources = [facts.source for facts in (read, by_user, built) if _has_any(facts)]
        return replace(known, source=" and ".join(sources)) if sources else known


_BUILT = "drop the option, or give it for single modules in --hparams FILE"


def _has_any(facts: Facts) -> bool:
    return any(getattr(facts, key) is not None for key in (*_KEYS, "rank"))


def overlay(upper: Facts, lower: Facts) -> Facts:
    """Return `upper` with the facts that only `lower` has."""
    unknown = {
        item.name: getattr(lower, item.name)
        for item in fields(Facts)
        if getattr(upper, item.name) in (None, "")
    }
    return replace(upper, **unknown)


def _differences(one: Facts, other: Facts) -> list[tuple[str, Any, Any]]:
    """List (key, value, other value) of every fact that both have with different values."""
    pairs = [(key, getattr(one, key), getattr(other, key)) for key in _KEYS]
    return [(k, a, b) for k, a, b in pairs if a is not None and b is not None and a != b]


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(int(block)) for block in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _option(key: str, value: object) -> str:
    """Return the option of the command line that gives the value."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{name}"
    return f"--{name} {_plain(value)}"


def agreed(
    module: str, read: Facts, other: Facts, hint: str = "leave one of them out, or correct it"
) -> Facts:
    """Return `read` with the facts that only `other` has.

    module: its name, for messages. hint: what to do about a contradiction.

    Raises:
        UsageError: they contradict each other; the message names both sources.
    """
    problems = [
        Problem(
            f"{key} is {here} in {read.source} but {there} in {other.source}",
            module,
            hint,
            cause="usage/facts-contradict",
        )
        for key, here, there in [*_differences(read, other), *_other_kinds(read, other)]
    ]
    if problems:
        raise UsageError.of(problems)
    return overlay(read, other)


def _other_kinds(one: Facts, other: Facts) -> list[tuple[str, str, str]]:
    """Return the contradiction of one that has an embedding and another that excludes it."""
    no_embedding = "a layer that is no embedding"
    if one.embeds is False and _looks_up(other):
        return [("kind", no_embedding, str(other.kind))]
    if other.embeds is False and _looks_up(one):
        return [("kind", str(one.kind), no_embedding)]
    return []


def _looks_up(facts: Facts) -> bool:
    known = all_kinds().get(facts.kind or "")  # a manifest may hold any word
    return known is not None and known.looks_up


def read_hparams(path: Path) -> tuple[Facts, Patterns]:
    """Read the top-level facts and per-module patterns of a TOML or JSON file.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is neither TOML nor JSON, or holds unknown keys or wrong types.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot be read: {error.strerror}", where=str(path), cause="storage/refused"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "not a text file", where=str(path), hint="TOML or JSON", cause="input/hparams"
        ) from error
    document = _parse(path, text)
    tables = document.pop("module", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(
            "module must be a list of tables",
            where=str(path),
            hint="[[module]]",
            cause="input/hparams",
        )
    problems: list[Problem] = []
    top = _facts(document, f"{path}", problems)
    patterns = []
    for number, table in enumerate(tables, 1):
        where = f"{path}: [[module]] {number}"
        match = table.pop("match", None)
        if not isinstance(match, str):
            problems.append(
                Problem("match is missing", where, 'match = "*.c_attn"', cause="input/hparams")
            )
            continue
        patterns.append((match, _facts(table, where, problems)))
    if problems:
        raise InputError.of(problems)
    return top, tuple(patterns)


def _parse(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise InputError(
            f"neither TOML nor JSON: {reason_of(error)}", where=str(path), cause="input/hparams"
        ) from error
    if not isinstance(document, dict):
        raise InputError("holds no table of facts", where=str(path), cause="input/hparams")
    return document


def _facts(table: Mapping[str, Any], where: str, problems: list[Problem]) -> Facts:
    problems += [
        Problem(f"unknown key {key!r}", where, f"one of: {', '.join(_KEYS)}", cause="input/hparams")
        for key in table.keys() - set(_KEYS)
    ]
    good: dict[str, Any] = {}
    for key in _KEYS:
        if key in table:
            value, wanted = _checked(key, table[key])
            hint = f"one of: {', '.join(sorted(all_kinds()))}" if key == "kind" else ""
            if value is None:
                message = f"{key} = {table[key]!r} is not {wanted}"
                problems.append(Problem(message, where, hint, cause="input/hparams"))
            good[key] = value
    return Facts(**good, source=where)


def _checked(key: str, value: object) -> tuple[Any, str]:
    """Return (the value in the form of Facts, or None where it does not fit; the form in words)."""
    if key == "alpha":
        return (value if _is_float(value) else None), "a number"
    if key == "fan_in_fan_out":
        return (value if isinstance(value, bool) else None), "true or false"
    if key == "kind":
        return (value if value in all_kinds() else None), "a kind of layer"
    if key in _COUNTS:
        return (value if type(value) is int and value > 0 else None), "a whole number above 0"
    entries = value if isinstance(value, list) else []
    blocks = tuple(bool(entry) for entry in entries if entry in (0, 1))
    good = any(blocks) and len(blocks) == len(entries)
    return (blocks if good else None), "a list of true and false, one of them true"


def _is_float(value: object) -> bool:
    """Return whether the value is a number that fits a float."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def parse_enable_lora(text: str) -> tuple[bool, ...]:
    """Parse `1,0,1` (also true/false) as loralib's enable_lora.

    Raises:
        UsageError: anything else, or no enabled block.
    """
    words = {"1": True, "true": True, "0": False, "false": False}
    try:
        blocks = tuple(words[word.strip().lower()] for word in text.split(","))
    except KeyError as error:
        raise UsageError(
            f"{error.args[0]!r} is neither 1 nor 0",
            where="--enable-lora",
            hint="e.g. 1,0,1",
            cause="usage/option-value",
        ) from None
    if not any(blocks):
        raise UsageError(
            "no block is enabled",
            where="--enable-lora",
            hint="e.g. 1,0,1",
            cause="usage/option-value",
        )
    return blocks
