"""The plan while it is being made: what was decided so far, and every problem seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NoReturn

from lora_export.errors import FitError, UsageError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.planning.facts.architecture import Layers
    from lora_export.planning.facts.user_facts import FactTable
    from lora_export.planning.full_tensors.account import Promise
    from lora_export.planning.full_tensors.find_ties import Tie
    from lora_export.planning.names.base_names import PrefixChange
    from lora_export.records import Checkpoint, Delta, ModelFacts, NameTable, TensorRef

Tied = Literal["untie", "eval", "error"]
Recipe = Literal["auto", "peft", "peft-safe", "exact"]
Tokenizer = Literal["base", "adapter"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; named as the command line's options.

    allow_unmatched, allow_new: globs on names of the adapter file. unmerged_base: BASE is a
    training checkpoint whose own factors are to be left out. tokenizer: whose tokenizer files the
    result gets; None: the base's, unless training resized the vocabulary. ignore: names of weight
    files in an adapter's folder that take no part. trust_file: where an adapter's file and its
    configuration disagree, True takes the file, False the configuration, None refuses. strict:
    refuse another base than the adapter names.
    """

    recipe: Recipe = "auto"
    tied: Tied = "untie"
    allow_unmatched: tuple[str, ...] = ()
    allow_new: tuple[str, ...] = ()
    allow_noop: bool = False
    rename: PrefixChange | None = None
    unmerged_base: bool = False
    tokenizer: Tokenizer | None = None
    ignore: tuple[str, ...] = ()
    trust_file: bool | None = None
    strict: bool = False

    def allows_new(self, name: str) -> bool:
        """Whether a full tensor of this name may be new in the result."""
        return any(fnmatchcase(name, glob) for glob in self.allow_new)


@dataclass(slots=True)
class Draft:
    """Decisions by base tensor name, and the problems, grouped by the exit status they mean.

    Attributes:
        table: asks for the names of the running model, where somebody knows them.
        layers_of: asks for the kinds of its layers, as `table` does.
        believed, disbelieved: keys that the adapter's configuration leaves out, used
            (--trust-file) or not (--trust-config).
        kept: the adapter's full tensors that are the base's own.
        idle: (where, why) of updates that change nothing, by the adapter's path.
        promised: see full_tensors/account.py.
        copies: what stands in the base's place from the start, under any update (a resized table).
        own: names whose full tensor belongs to a module of the adapter's own, not to the parameter
            that others share.
        heads: names that the base lacks and the adapter brings.
        resized: full tensors of another shape than the base's, with their place for messages and
            whether they belong to a module that the adapter brings whole.
        mixed: some adapters say alpha themselves, and the options say it of the others.
        vocabulary: its sizes before and after, where it is resized.
        twins, reshaped: see MergePlan.
        in_turn: see Step.
        edits: of config.json, by the keys that lead to the value.
        told: the same in words.
        layers: the names under which a tensor of a layer is written, where that is not its own.
        turned_by: who says how square weights are stored, by adapter and module.
        joined: files beside adapters, each with the name that --ignore takes.
        foreign: of those files, the names that the base lacks.
    """

    base: Checkpoint
    stored: Mapping[str, TensorRef]
    facts: FactTable
    model: ModelFacts | None
    options: Options
    ties: tuple[Tie, ...]
    table: Callable[[], NameTable | None] = lambda: None
    layers_of: Callable[[], Layers | None] = lambda: None
    merged: dict[str, list[Delta]] = field(default_factory=dict)
    replaced: dict[str, TensorRef] = field(default_factory=dict)
    added: dict[str, TensorRef] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    disbelieved: list[str] = field(default_factory=list)
    coupled: list[str] = field(default_factory=list)
    separated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    idle: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    promised: list[Promise] = field(default_factory=list)
    copies: dict[str, TensorRef] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    heads: set[str] = field(default_factory=set)
    resized: dict[str, tuple[str, bool]] = field(default_factory=dict)
    mixed: bool = False
    vocabulary: tuple[int, int] | None = None
    twins: list[Delta] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    in_turn: set[str] = field(default_factory=set)
    edits: dict[tuple[str, ...], object] = field(default_factory=dict)
    told: dict[tuple[str, ...], str] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    turned_by: dict[tuple[str, str], str] = field(default_factory=dict)
    joined: dict[Path, str] = field(default_factory=dict)
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unfit: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)

    def table_of(self, name: str) -> str:
        """The stored tensor that holds the value of `name`: itself, or the one it is tied to."""
        if name in self.stored:
            return name
        return next(tie.table for tie in self.ties if name in tie.names)

    def value_of(self, name: str) -> TensorRef:
        """What `name` holds before any update, unless the adapter has a module of its own there."""
        table = self.table_of(name)
        return self.copies.get(table, self.stored[table])

    def way_out(self, ref: TensorRef, hint: str) -> str:
        """`hint`, and of a tensor in a file beside the adapter's, how to leave the file out."""
        name = self.joined.get(ref.file)
        return f"{hint}; --ignore '{name}' leaves the file out" if name else hint

    def edit(self, key: str, value: object, told: str = "", *, inside: str = "") -> None:
        """Set a value of config.json, or of the object that it holds under `inside`.

        told: the edit in words, where `value` is long.
        """
        path = (inside, key) if inside else (key,)
        self.edits[path] = value
        self.told[path] = told or f"{'.'.join(path)}: {json.dumps(value)}"

    def nested(self, key: str, inside: str = "text_config") -> Mapping[str, object] | None:
        """The object under `inside` of a config.json that has `key` there."""
        value = self.base.config.get(inside)
        return value if isinstance(value, dict) and key in value else None

    def edit_everywhere(self, key: str, value: object) -> bool:
        """Set what config.json or its text_config holds; whether one of them does."""
        is_inside = self.nested(key) is not None
        if is_inside:
            self.edit(key, value, inside="text_config")
        if key in self.base.config:
            self.edit(key, value)
        return is_inside or key in self.base.config

    def stop_on_problems(self) -> None:
        """Raise everything that is wrong at once.

        Raises:
            FitError: something does not fit (with the missing facts, if any, told as well).
            UsageError: only facts are missing.
        """
        if self.unfit:
            _raise(FitError, [*self.unfit, *self.missing])
        if self.missing:
            _raise(UsageError, self.missing)


def _raise(kind: type[FitError | UsageError], problems: list[Problem]) -> NoReturn:
    raise kind.of(grouped(problems))


def grouped(problems: list[Problem]) -> list[Problem]:
    """The same problem at many places told once, with the number of places and the first three."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        key = (problem.message, problem.hint, problem.asks)
        places.setdefault(key, []).append(problem.where)
    return [Problem(key[0], _places(where), *key[1:]) for key, where in places.items()]


def _places(where: list[str]) -> str:
    """One place as it is; of several in one file, the file once and the first three names."""
    if len(where) == 1:
        return where[0]
    files = {place.rpartition(": ")[0] for place in where}
    shared = f"{files.pop()}: " if len(files) == 1 and "" not in files else ""
    shown = ", ".join(place.removeprefix(shared) for place in where[:3])
    return f"{shared}{len(where)} places ({shown}{', ...' if len(where) > 3 else ''})"  # noqa: PLR2004
