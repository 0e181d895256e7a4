"""Reads the manifest of an earlier export, and checks all of it: anyone may have edited the file.

Only this module defines what a manifest must hold, and of which type. `report.manifest` writes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn, TypeVar

from lora_export.checkpoint.folder.side_files import is_plain_path, manifest_path
from lora_export.checkpoint.reading import read_json_object
from lora_export.errors import InputError
from lora_export.records import Facts
from lora_export.report.manifest import FORMAT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.records import Adapter, Problem

T = TypeVar("T")
_OPTIONS = ("dialect", "rename", "tokenizer", "dtype")
"""The recorded options that decide how inputs are read, which files are taken, and the dtype."""


@dataclass(frozen=True, slots=True)
class RecordedAdapter:
    """An adapter that was merged."""

    name: str
    digest: str
    """SHA-256 of its tensors (`tensors_sha256`), the same in every file format."""
    weight: float
    joined_digest: str = ""
    """The same of the weights beside it that were used; "" when none were."""
    ignored: tuple[str, ...] = ()
    """The weight sets that --ignore left out, by name."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The content of a manifest."""

    path: Path
    outputs: Mapping[str, str]
    """SHA-256 of every output file, by relative path."""
    base: tuple[str, ...]
    """SHA-256 of every file of the base; "" for a file that was not hashed."""
    adapters: tuple[RecordedAdapter, ...]
    merged_before: tuple[str, ...]
    """Digests of the adapters that the base already held."""
    facts: Mapping[tuple[int, str], Facts]
    """The facts of every update, by the adapter's place in `adapters` and the module."""
    recipe: str
    options: Mapping[str, str]
    """The options of _OPTIONS that were set."""
    task: str | None
    kv_cache: bool
    trust_file: bool | None
    """Which was followed, an adapter's file or its config; None when they do not disagree."""
    verified: bool | None
    """Whether the verification passed; None when there was none."""
    levels: tuple[str, ...] = ()
    """The levels that it was proven at; empty where there was no proof."""
    precision: str = "fp32"
    """The precision of an ONNX file's weights; of several files theirs, joined by commas."""
    layout: str = "onnx"
    """How the ONNX files lie: "onnx" for a bare file or a pair of them."""
    static: tuple[str, ...] = ()
    """The dimensions of an ONNX file's inputs that --static fixed."""

    def weighted(self, adapter: Adapter) -> Adapter:
        """Return `adapter` with the weight that is recorded for its digest, if one is."""
        weights = [known.weight for known in self.adapters if known.digest == adapter.digest]
        return replace(adapter, weight=weights[0]) if weights else adapter


def read_manifest(root: Path, *, hint: str) -> Recorded | None:
    """Read the manifest of the artefact or base at `root`; None when it has none.

    hint: how to go on without it, for the user.

    Raises:
        InputError: the manifest is damaged or of another format; the place in it is named.
        StorageError: it cannot be read.
    """
    path = manifest_path(root)
    # lexists: a link that leads nowhere is a lost manifest and must not pass for none.
    if not os.path.lexists(path):
        return None
    try:
        return _read(path)
    except InputError as error:
        raise InputError.of([_with_hint(problem, hint) for problem in error.problems]) from error


def _with_hint(problem: Problem, hint: str) -> Problem:
    return problem if problem.hint else replace(problem, hint=hint)


def _read(path: Path) -> Recorded:
    top = _Table(read_json_object(path), str(path), "")
    if top.get("format", int) != FORMAT:
        top.refuse("format", f"must be {FORMAT}, the only format that this version reads")
    inputs = top.table("inputs")
    adapters = inputs.tables("adapters")
    verification = top.members.get("verification")
    options = top.table("options")
    return Recorded(
        path=path,
        outputs=_outputs(top),
        base=tuple(file.get("sha256", str, "") for file in inputs.tables("base")),
        adapters=tuple(
            RecordedAdapter(
                entry.get("name", str),
                entry.get("tensors_sha256", str),
                entry.number("weight"),
                entry.get("joined_sha256", str, ""),
                entry.texts("ignored") if "ignored" in entry else (),
            )
            for entry in adapters
        ),
        merged_before=inputs.texts("merged_before"),
        facts=_facts(top, len(adapters)),
        recipe=top.get("recipe", str),
        options={key: options.get(key, str) for key in _OPTIONS if key in options},
        precision=top.table("onnx").get("precision", str) if "onnx" in top else "fp32",
        layout=top.table("onnx").get("layout", str, "onnx") if "onnx" in top else "onnx",
        task=options.get("task", str) if "task" in options else None,
        kv_cache=options.get("kv_cache", bool, default=False),
        static=options.texts("static") if "static" in options else (),
        trust_file=options.get("trust_file", bool) if "trust_file" in options else None,
        verified=None if verification is None else top.table("verification").get("passed", bool),
        levels=() if verification is None else _levels(top.table("verification")),
    )


def _levels(verification: _Table) -> tuple[str, ...]:
    """Return the levels that are proven; an older manifest has none of them."""
    if "levels" not in verification:
        return ()
    levels = verification.table("levels")
    return tuple(name for name in levels.members if levels.table(name).get("proven", bool))


def _outputs(top: _Table) -> dict[str, str]:
    outputs: dict[str, str] = {}
    for entry in top.tables("outputs"):
        name = entry.get("name", str)
        if name in outputs:
            entry.refuse("name", f"names {name!r} a second time")
        # The name becomes a path that is read: it must not lead out of the artefact's folder.
        if not is_plain_path(name):
            entry.refuse("name", f"is no plain relative path: {name!r:.80}")
        outputs[name] = entry.get("sha256", str)
    return outputs


def _facts(top: _Table, adapters: int) -> dict[tuple[int, str], Facts]:
    facts: dict[tuple[int, str], Facts] = {}
    updates = top.table("updates")
    for tensor in updates.members:
        for entry in updates.tables(tensor):
            index = entry.get("adapter", int)
            if index not in range(adapters):
                entry.refuse("adapter", f"is {index}, but there are {adapters} adapters")
            heads = entry.heads("heads")
            found = Facts(
                alpha=entry.number("alpha"),
                fan_in_fan_out=entry.get("fan_in_fan_out", bool),
                enable_lora=entry.blocks("enable_lora") or None,
                kind=entry.get("kind", str),
                rank=entry.get("rank", int),
                n_head=heads[0],
                n_query_groups=heads[1],
                source="the manifest",
            )
            key = (index, entry.get("module", str))
            if facts.setdefault(key, found) != found:
                entry.refuse("module", f"{key[1]!r} has other facts under another tensor")
    return facts


class _Table:
    """An object of the manifest and its place there; its members are read by type.

    Every method that reads a member raises InputError, with the place, for another type.
    """

    def __init__(self, members: Mapping[str, object], file: str, place: str) -> None:
        self.members = members
        self._file = file
        self._place = place

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def refuse(self, key: str, message: str) -> NoReturn:
        """Raise InputError about the member `key`."""
        raise InputError(
            f"is no manifest of ours: {self._inside(key)} {message}",
            where=self._file,
            cause="input/manifest",
        )

    def _inside(self, key: str) -> str:
        """Return the place of a member in the document."""
        return f"{self._place}.{key}" if self._place else key

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a member of type `kind`, or the default when it is missing."""
        value = self.members.get(key, default)
        # True is an int for isinstance.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            words = {str: "a text", int: "a whole number", bool: "true or false"}
            self.refuse(key, f"must be {words.get(kind, kind.__name__)}")
        return value

    def number(self, key: str) -> float:
        """Return a member that is a number."""
        value = self.members.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "must be a number")
        try:
            return float(value)
        except OverflowError:
            self.refuse(key, "must be a number that a float can hold")

    def table(self, key: str) -> _Table:
        """Return a member that is an object."""
        value = self.members.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "must be an object")
        return _Table(value, self._file, self._inside(key))

    def tables(self, key: str) -> list[_Table]:
        """Return a member that is a list of objects."""
        tables = []
        for number, value in enumerate(self._list(key)):
            if not isinstance(value, dict):
                self.refuse(f"{key}[{number}]", "must be an object")
            tables.append(_Table(value, self._file, f"{self._inside(key)}[{number}]"))
        return tables

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a member that is a list of texts."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            self.refuse(key, "must be a list of texts")
        return tuple(str(value) for value in values)

    def blocks(self, key: str) -> tuple[bool, ...]:
        """Return a member that is a list of 0 and 1, or of false and true."""
        values = self._list(key)
        if not all(value in (0, 1) for value in values):
            self.refuse(key, "must be a list of 0 and 1")
        return tuple(bool(value) for value in values)

    def heads(self, key: str) -> tuple[int, int] | tuple[None, None]:
        """Return a member that is two whole numbers above 0; None twice when it is missing."""
        if key not in self:
            return None, None
        values = self._list(key)
        whole = [value for value in values if type(value) is int and value > 0]
        if len(whole) != len(values) or len(whole) != 2:
            self.refuse(key, "must be two whole numbers above 0")
        return whole[0], whole[1]

    def _list(self, key: str) -> Sequence[object]:
        value = self.members.get(key)
        if not isinstance(value, list):
            self.refuse(key, "must be a list")
        return value
