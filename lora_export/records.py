"""The nouns of the house: frozen values that say what was read and what will be written.

No tensor and no open file is held here, so a plan can be printed, compared and serialised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Bits of one element of every dtype that safetensors 0.8 defines, under its own names.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes a merge may change; the dtypes in which factors may be stored."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where, and what to do about it."""

    message: str
    where: str = ""
    hint: str = ""

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
    """

    file: Path
    tensors: tuple[TensorRef, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrapper: str = ""
    container: Literal["safetensors", "torch"] = "safetensors"


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

    path: the weight file. config: adapter_config.json beside it, else empty. wrapper: the keys,
    joined by dots, under which a torch pickle held the state dict, else "".
    """

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    wrapper: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """The low-rank factors an adapter holds for one of its modules, by role ("A", "B")."""

    module: str
    factors: Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True)
class Replacement:
    """A full tensor of the adapter file that takes the place of the base's tensor `name`."""

    name: str
    ref: TensorRef


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a dialect understood: every tensor of the file is in exactly one update or replacement.

    wrapper: as of the file. digest: SHA-256 of what the tensors hold, whatever the file's format.
    """

    path: Path
    dialect: str
    updates: tuple[Update, ...]
    replacements: tuple[Replacement, ...]
    weight: float = 1.0
    wrapper: str = ""
    digest: str = ""

    def names(self) -> list[str]:
        """Names of all adapted modules and full tensors."""
        return [*(u.module for u in self.updates), *(r.name for r in self.replacements)]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loralib file does not hold about a module; None where not known.

    Reproduces the constructor arguments of loralib 0.1.2 layers. `rank` is only read from a model,
    of a module that holds factors. `embeds` is False for a plain layer that is no embedding.
    `source` says where the facts come from, for messages.
    """

    alpha: float | None = None
    fan_in_fan_out: bool | None = None
    enable_lora: tuple[bool, ...] | None = None
    kind: str | None = None
    rank: int | None = None
    embeds: bool | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a user's own model tells about itself, without its weights; names without wrappers.

    modules: facts by name of a loralib module, and the storage order of plain ones.
    tensors: shape of every entry of the state dict less the low-rank factors.
    ties: groups of names that are one parameter.
    normed: embeddings with max_norm, which no merge can reproduce.
    shared: groups of names that are one module.
    """

    source: str
    modules: Mapping[str, Facts]
    tensors: Mapping[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...] = ()
    normed: frozenset[str] = frozenset()
    shared: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """One update resolved against its base tensor: all that the arithmetic needs.

    kind: name of the layer kind. shape: of the base tensor. scaling: alpha / rank, the library's
    Python float. weight: the user's factor for the adapter. module: the model's own name for the
    module (the base's name of the tensor less its last component).
    """

    adapter: str
    module: str
    kind: str
    factors: Mapping[str, TensorRef]
    shape: tuple[int, ...]
    rank: int
    alpha: float
    scaling: float
    weight: float = 1.0
    fan_in_fan_out: bool = False
    enable_lora: tuple[bool, ...] = ()


StepAction = Literal["copy", "merge", "replace", "add"]


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor comes about.

    action: copy the base's bytes, merge deltas into them, replace them by an adapter's tensor, or
    add a tensor that the base does not hold (an adapter's, or an untied head made from the base's
    embedding; then `source` is the embedding).
    """

    out: TensorSpec
    action: StepAction
    source: TensorRef
    deltas: tuple[Delta, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One output file: name relative to the output folder, its steps in storage order."""

    file: str
    steps: tuple[Step, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that will be written, decided before the first byte is.

    dropped: base tensors that are not written and why (adapter tensors inside a training
    checkpoint). choices: every naming rule and fact used, in words. unmatched: adapter keys that
    --allow-unmatched let go. coupled: tied tensors that change together (--tied eval), so that the
    result cannot equal the unmerged model. separated: names that are tied to another one in the
    model and are no longer.
    """

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    recipe: str
    shards: tuple[ShardPlan, ...]
    side_files: tuple[SideFile, ...] = ()
    index_name: str | None = None
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    coupled: tuple[str, ...] = ()
    separated: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def steps(self) -> tuple[Step, ...]:
        """All steps of all shards, in storage order."""
        return tuple(step for shard in self.shards for step in shard.steps)

    def new_tensors(self) -> dict[str, TensorRef]:
        """The tensors the base lacks, without which no model can be built on it."""
        return {step.out.name: step.source for step in self.steps() if step.action == "add"}

    def full_tensors(self) -> dict[str, TensorRef]:
        """What the unmerged model holds beside or instead of the base's tensors, by their names.

        A tensor that is new and adapted counts with the value it has before its update.
        """
        steps = (step for step in self.changed() if not step.deltas or step.action == "add")
        return {step.out.name: step.source for step in steps}

    def changed(self) -> tuple[Step, ...]:
        """The steps whose output is not a copy of the base's bytes."""
        return tuple(step for step in self.steps() if step.action != "copy")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A model input: `name=dtype[dim,dim]<high`.

    dims: a positive int is fixed, a str names a dynamic dimension. high: exclusive upper bound of
    an integer input (vocabulary size). dtype: torch's name (float32, int64, bool).
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One proof: `worst` was seen at `where`, at most `tolerance` was allowed.

    A check of identity has worst = number of differences and tolerance = 0. at_least: `worst`
    must be above `tolerance` instead, as the adapter's effect must be above the noise.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    detail: str = ""
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """An output file as written: path relative to the output's folder, digest, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A staged or published result: the root path and its files."""

    root: Path
    files: tuple[WrittenFile, ...]


def example_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every dynamic dimension while a model is traced: 2, 5, 8, ... by first mention.

    Distinct, so that the tracer cannot take two of them for one, and never 1, which it would fix.
    Here, below tracer and probes, because a proof needs sizes that the tracer has not seen.
    """
    names = dict.fromkeys(dim for spec in specs for dim in spec.dims if isinstance(dim, str))
    return {name: 2 + 3 * place for place, name in enumerate(names)}
