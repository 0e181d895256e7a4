"""What is on disk: tensors as named, typed byte ranges of files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from lora_export.shown import HINT_MOST, MOST, shown, shown_line, shown_middle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element of every dtype that safetensors 0.8 defines, under its own names."""

HALF_DTYPES = frozenset({"F16", "BF16"})
"""Floats of two bytes, in which the order of roundings matters."""

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes a merge may change; the dtypes in which factors may be stored."""


_LEAST = 40
"""The characters of a place that are always shown, if it has as many."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    message: str
    """What is wrong, in one sentence."""
    where: str = ""
    """The file, tensor or option; "" if the message names it."""
    hint: str = ""
    """What to do about it; "" if there is nothing to do."""
    asks: str = ""
    """The option that gives a missing fact, with a placeholder for its value."""
    cause: str = ""
    """The entry of `lora-export explain` about it, such as "fit/no-module"."""

    @property
    def subject(self) -> str:
        """Return the place to put before the message; "" where the message names it itself."""
        begins = self.message.startswith((f"{self.where}:", f"{self.where} "))
        is_long = any(mark in self.where for mark in (".", "/", ", "))
        return "" if begins or (is_long and self.where in self.message) else self.where

    def __str__(self) -> str:
        """Return one line that may be shown, and a second one with the hint where there is one."""
        most = MOST - len("error: ")
        # The place gives way first: a message without its end may mean something else.
        room = max(_LEAST, most - len(shown(self.message)) - len(": "))
        where = f"{shown_middle(self.subject, room)}: " if self.subject else ""
        line = shown_line(f"{where}{self.message}", most)
        return f"{line}\n  -> {shown_line(self.hint, HINT_MOST)}" if self.hint else line


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    """safetensors' name of the dtype, a key of DTYPE_BITS."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Return the number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes of the tensor when it is stored densely."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lies."""

    spec: TensorSpec
    file: Path
    offset: int
    """The tensor's first byte in the file."""
    length: int
    """The number of bytes from its first to its last element."""
    strides: tuple[int, ...] | None = None
    """Steps in elements inside these bytes; None for a dense row-major tensor.

    Only a torch pickle may hold a tensor with strides.
    """

    def part(self, start: int, shape: tuple[int, ...]) -> TensorRef:
        """Return where elements of a dense tensor lie that follow each other in row-major order.

        start: the number of the first one. shape: in which they are read.
        """
        spec = replace(self.spec, shape=shape)
        offset = self.offset + start * DTYPE_BITS[self.spec.dtype] // 8
        return replace(self, spec=spec, offset=offset, length=spec.nbytes)


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file of a folder that holds no weights."""

    name: str
    """The path relative to the folder."""
    source: Path | None
    """The file to copy; None if `content` is written instead."""
    content: bytes | None = None
    edits: tuple[str, ...] = ()
    """What differs from the base's file, for the user."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of a checkpoint."""

    file: Path
    tensors: tuple[TensorRef, ...]
    """The tensors in the order in which they are stored."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrapper: str = ""
    """The keys, joined by dots, under which a torch pickle held the state dict, else ""."""
    container: Literal["safetensors", "torch"] = "safetensors"
    """The file's format, whatever its name."""
    notes: tuple[str, ...] = ()
    """What in the file was not opened, for the user."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """A weight file, or shards that belong together; none of them has been read."""

    name: str
    """The name of the file or the index, or a glob for shards without an index."""
    files: tuple[Path, ...]
    index: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """Return every file of the set, with its index."""
        return (*self.files, self.index) if self.index else self.files


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is quantised in a checkpoint."""

    method: str
    """The scheme's name for messages."""
    weights: Mapping[str, str]
    """The tensor that shows how a weight is stored, by the name a plain model gives the weight."""
    claims: tuple[str, ...]
    """The keys of config.json that describe a quantisation."""
    remains: bool
    """Whether anything may be quantised at all; if not, the claims are out of date."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base (or merged) model on disk."""

    root: Path
    """The weight file, or the folder."""
    layout: Literal["file", "folder"]
    """Whether the user gave one weight file, or a Hugging Face folder or its index."""
    shards: tuple[Shard, ...]
    side_files: tuple[SideFile, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    """The parsed config.json of a folder, else empty."""
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    """The "metadata" object of the shard index, else empty."""
    index_name: str | None = None
    quantization: Quantization | None = None
    """What is quantised in it, found once when it is read; None where nothing shows any."""

    def tensors(self) -> dict[str, TensorRef]:
        """Return all tensors by name, in shard order."""
        return {ref.spec.name: ref for shard in self.shards for ref in shard.tensors}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk, before any dialect has read it."""

    path: Path
    """The weight file, or the index of its shards."""
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    """The parsed adapter_config.json beside it, else empty."""
    wrapper: str = ""
    """The keys, joined by dots, under which a torch pickle held the state dict, else ""."""
    notes: tuple[str, ...] = ()
    """How the file was chosen of several, for the user."""
    files: tuple[Path, ...] = ()
    """The adapter's own weight files."""
    beside: tuple[WeightSet, ...] = ()
    """Other weights in the same folder, not read yet; only listed if there is a config."""
    joined: Mapping[Path, str] = field(default_factory=dict)
    """The files of those whose tensors are among `tensors`, each with the name of its set."""
