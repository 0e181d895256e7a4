"""What lies on disk: tensors as named, typed byte ranges of files."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


# Bits of one element of every dtype that safetensors 0.8 defines, under its own names.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

HALF_DTYPES = frozenset({"F16", "BF16"})
"""Of two bytes, in which every rounding shows."""

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes a merge may change; the dtypes in which factors may be stored."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where, and what to do about it.

    asks: the option that gives a missing fact, with a placeholder for its value.
    """

    message: str
    where: str = ""
    hint: str = ""
    asks: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  -> {self.hint}" if self.hint else text


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (safetensors' name for it) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes when stored densely."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lies: `length` bytes at `offset` of `file`.

    `strides` (in elements) is None for a dense row-major tensor, else the layout of the tensor
    inside its byte range, as torch pickles may store it.
    """

    spec: TensorSpec
    file: Path
    offset: int
    length: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file of the base folder that is no weight: copied, or written with `content`."""

    name: str
    source: Path | None
    content: bytes | None = None
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of a checkpoint: its tensors in the order in which they are stored.

    container: how the file is written, whatever its name says.
    wrapper: the keys, joined by dots, under which a torch pickle held the state dict, else "".
    notes: what the file holds that was not opened, in words.
    """

    file: Path
    tensors: tuple[TensorRef, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrapper: str = ""
    container: Literal["safetensors", "torch"] = "safetensors"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightSet:
    """A weight file, or the shards that make one together; nothing of it has been read.

    name: of the file or the index, or a glob that fits all shards where they have no index.
    """

    name: str
    files: tuple[Path, ...]
    index: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """Every file of the set, with its index."""
        return (*self.files, self.index) if self.index else self.files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base (or merged) model on disk.

    layout: "file" (one weight file was named) or "folder" (a Hugging Face folder or an index).
    root: the named file, or the folder.
    config: the parsed config.json of a folder, else empty.
    index_metadata: the "metadata" object of the shard index, else empty.
    """

    root: Path
    layout: Literal["file", "folder"]
    shards: tuple[Shard, ...]
    side_files: tuple[SideFile, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    index_name: str | None = None

    def tensors(self) -> dict[str, TensorRef]:
        """All tensors by name, in shard order."""
        return {ref.spec.name: ref for shard in self.shards for ref in shard.tensors}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as it lies on disk, before any dialect has read it.

    path: the weight file, or the index of its shards. config: adapter_config.json beside it, else
    empty. wrapper: the keys, joined by dots, under which a torch pickle held the state dict, else
    "". notes: how the file was chosen of several, in words. files: the adapter's own. beside: other
    weights in the same folder, not read yet; looked for where there is a configuration. joined:
    those of their files whose tensors are among `tensors`, each with the name of its set.
    """

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    wrapper: str = ""
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    beside: tuple[WeightSet, ...] = ()
    joined: Mapping[Path, str] = field(default_factory=dict)
