"""Reads the manifest of an earlier export; it is a file like any other, so nothing is believed.

What it must hold, and of which type, is said here alone; `report.manifest` writes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn, TypeVar

from lora_export.checkpoint.folder.side_files import manifest_path
from lora_export.checkpoint.reading import read_json_object
from lora_export.errors import InputError
from lora_export.records import Facts
from lora_export.report.manifest import FORMAT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.records import Adapter, Problem

T = TypeVar("T")
# Those that say how the inputs are read, and which of their files are taken.
_OPTIONS = ("dialect", "rename", "tokenizer")


@dataclass(frozen=True, slots=True)
class RecordedAdapter:
    """An adapter that went in. digest: of what its tensors hold, whatever the file's format.

    joined_digest: the same of the weights beside it, "" where none was used. ignored: those that
    --ignore left out.
    """

    name: str
    digest: str
    weight: float
    joined_digest: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a manifest says.

    outputs: SHA-256 by relative path. base: SHA-256 of every file of the base, "" where none was
    taken. merged_before: digests of the adapters in the base. facts: by the adapter's place in
    `adapters` and the module. options: those that say how to read the inputs. verified: None when
    nothing was verified. precision: of an ONNX file. trust_file: which of an adapter's file and
    its configuration was followed where they disagree, None where they do not.
    """

    path: Path
    outputs: Mapping[str, str]
    base: tuple[str, ...]
    adapters: tuple[RecordedAdapter, ...]
    merged_before: tuple[str, ...]
    facts: Mapping[tuple[int, str], Facts]
    recipe: str
    options: Mapping[str, str]
    task: str | None
    kv_cache: bool
    trust_file: bool | None
    verified: bool | None
    precision: str = "fp32"

    def weighted(self, adapter: Adapter) -> Adapter:
        """`adapter` with the weight that is recorded for what it holds."""
        weights = [known.weight for known in self.adapters if known.digest == adapter.digest]
        return replace(adapter, weight=weights[0]) if weights else adapter


def read_manifest(root: Path, *, hint: str) -> Recorded | None:
    """The manifest of the artefact or base at `root`, None where it has none.

    hint: how to go on without it.

    Raises:
        InputError: it is there, but damaged or of another format; the place is named.
        StorageError: it cannot be read.
    """
    path = manifest_path(root)
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
        top.refuse("format", f"must be {FORMAT}, the only one that this version knows")
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
        task=options.get("task", str) if "task" in options else None,
        kv_cache=options.get("kv_cache", bool, default=False),
        trust_file=options.get("trust_file", bool) if "trust_file" in options else None,
        verified=None if verification is None else top.table("verification").get("passed", bool),
    )


def _outputs(top: _Table) -> dict[str, str]:
    outputs: dict[str, str] = {}
    for entry in top.tables("outputs"):
        name = entry.get("name", str)
        if name in outputs:
            entry.refuse("name", f"names {name!r} a second time")
        if "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            entry.refuse("name", f"is no plain relative path: {name!r}")
        outputs[name] = entry.get("sha256", str)
    return outputs


def _facts(top: _Table, adapters: int) -> dict[tuple[int, str], Facts]:
    facts: dict[tuple[int, str], Facts] = {}
    updates = top.table("updates")
    for tensor in updates.members:
        for entry in updates.tables(tensor):
            index = entry.get("adapter", int)
            if index not in range(adapters):
                entry.refuse("adapter", f"names adapter {index} of {adapters}")
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
    """An object of the document and its place there; its members are asked for by type."""

    def __init__(self, members: Mapping[str, object], file: str, place: str) -> None:
        self.members = members
        self._file = file
        self._place = place

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def refuse(self, key: str, message: str) -> NoReturn:
        place = f"{self._place}.{key}" if self._place else key
        raise InputError(f"is no manifest of ours: {place} {message}", where=self._file)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.members.get(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            words = {str: "a text", int: "a whole number", bool: "true or false"}
            self.refuse(key, f"must be {words.get(kind, kind.__name__)}")
        return value

    def number(self, key: str) -> float:
        value = self.members.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "must be a number")
        try:
            return float(value)
        except OverflowError:
            self.refuse(key, "must be a number that a float can hold")

    def table(self, key: str) -> _Table:
        value = self.members.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "must be an object")
        return _Table(value, self._file, f"{self._place}.{key}" if self._place else key)

    def tables(self, key: str) -> list[_Table]:
        place = f"{self._place}.{key}" if self._place else key
        tables = []
        for number, value in enumerate(self._list(key)):
            if not isinstance(value, dict):
                self.refuse(f"{key}[{number}]", "must be an object")
            tables.append(_Table(value, self._file, f"{place}[{number}]"))
        return tables

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            self.refuse(key, "must be a list of texts")
        return tuple(str(value) for value in values)

    def blocks(self, key: str) -> tuple[bool, ...]:
        values = self._list(key)
        if not all(value in (0, 1) for value in values):
            self.refuse(key, "must be a list of 0 and 1")
        return tuple(bool(value) for value in values)

    def heads(self, key: str) -> tuple[int, int] | tuple[None, None]:
        """Two numbers above 0, or None twice where there are none."""
        if key not in self:
            return None, None
        values = self._list(key)
        whole = [value for value in values if type(value) is int and value > 0]
        if len(whole) != len(values) or len(whole) != 2:  # noqa: PLR2004
            self.refuse(key, "must be two whole numbers above 0")
        return whole[0], whole[1]

    def _list(self, key: str) -> Sequence[object]:
        value = self.members.get(key)
        if not isinstance(value, list):
            self.refuse(key, "must be a list")
        return value
