"""What an adapter's file holds: updates, full tensors, and what the file states about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.records.facts import Facts
    from lora_export.records.files import TensorRef


MergeRecipe = Literal["loralib", "peft", "peft-safe"]
"""Whose merge: loralib's eval(), PEFT's merge_and_unload(), the same with safe_merge=True."""

ScalingRule = Literal[
    "alpha / rank", "alpha / rank in float32", "alpha / sqrt(rank)", "alpha / (rank + 1e-5)", "1"
]
"""How a library computes the scaling from alpha and rank. Merge and proof each compute it."""


Family = Literal["loralib", "litgpt"]
"""Whose layers an update belongs to, if no config names a tuner."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an adapter's own files state about one of its updates."""

    tuner: str
    """The family of arithmetic; a layer kind lists it among its `tuners`."""
    alpha: float
    rank: int | None
    """None if only the factors show it."""
    rule: ScalingRule = "alpha / rank"
    fan_in_fan_out: bool | None = None
    """As the file has it. It may be wrong, and is no more than a hint for square weights."""
    indices: tuple[int, ...] = ()
    """The rows of the table that the update changes."""
    source: str = ""
    """The file, for messages."""
    version: str = ""
    """Version of the library that wrote the file, if the arithmetic depends on it."""
    held_as_base: bool = False
    """Whether the library rounds the factors to the weight's dtype when it loads them.

    Of VeRA it rounds only the projection.
    """
    seed: int | None = None
    """Seed of the projection that all updates of the adapter share, if the file lacks it."""
    zero_is_ambiguous: bool = False
    """Whether alpha = 0 is ambiguous: trainers read it as the rank, merge scripts as no update."""
    rounds_first: bool = False
    """Whether the library's plain merge rounds the update as its safe merge does."""


@dataclass(frozen=True, slots=True)
class Update:
    """The factors that an adapter holds for one of its modules."""

    module: str
    factors: Mapping[str, TensorRef]
    """By role, such as "A" and "B"."""
    parameter: str = "weight"
    """The module's parameter that is updated."""
    terms: Terms | None = None
    """None if the file holds factors alone, as loralib's does."""
    instead: tuple[Update, ...] = ()
    """The same factors as updates of other parameters; only the base shows which one is right."""
    level: int = 0
    """The place among updates nested in one module. The outermost, of the last parameter, has 0."""
    optional: bool = False
    """Whether there is no update if the base lacks the parameter or has zeros there."""
    family: Family = "loralib"
    """The layers that can read it when `terms` is None."""
    own: Facts | None = None
    """What files beside the adapter state when `terms` is None.

    Options add what is missing and must not contradict it.
    """
    outside: str = ""
    """The member of the config for which the library ignores the factors; "" if it uses them."""

    def readings(self) -> tuple[Update, ...]:
        """Return every update that the factors can be."""
        return (self, *self.instead)


Origin = Literal[
    "shared",  # the parameter of that name, with all modules that share it
    "module",  # a module of the adapter's own in place of the base's (PEFT's modules_to_save)
    "base",  # the layer under an update, of which it is a copy (PEFT's base_layer)
    "under",  # the layer under an update, in which it was trained
]
"""What a full tensor is loaded into."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A full tensor of the adapter file that takes the place of the base's tensor `name`."""

    name: str
    ref: TensorRef
    origin: Origin = "shared"
    outside: str = ""
    """The member of the config for which the library ignores the tensor; "" if it uses it."""


def _none(_: str) -> str:
    """Return "": a file without a config leaves no module out."""
    return ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its dialect understands it.

    Every tensor of the file is in exactly one update, replacement, fact or entry of `left_out`;
    only factors that several updates share are in more.
    """

    path: Path
    """The file or folder, as the user named it."""
    dialect: str
    """Whose file it is: "peft", "loralib", ..."""
    updates: tuple[Update, ...]
    """The low-rank updates, one for each module that was adapted."""
    replacements: tuple[Replacement, ...]
    """Full tensors that take the place of the base's."""
    weight: float = 1.0
    """The user's factor for the whole adapter."""
    wrapper: str = ""
    """See AdapterFile."""
    digest: str = ""
    """SHA-256 of names, dtypes, shapes and values of the tensors, the same in every file format."""
    config_file: Path | None = None
    """The adapter's config, if it has one."""
    trained_on: str = ""
    """The base's name in the config."""
    revision: str = ""
    """The base's revision in the config."""
    notes: tuple[str, ...] = ()
    """How the file was chosen and read, for the user."""
    doubts: tuple[str, ...] = ()
    """What the user should be warned of in the file."""
    task: str = ""
    """PEFT's task_type."""
    heads: tuple[str, ...] = ()
    """Modules that the adapter brings whole, also if the base has none of that name."""
    replication: tuple[tuple[int, int], ...] = ()
    """The layers, (first, last + 1), of which the model is put together anew; () for no change."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Tensors that take no part, each with the reason."""
    bias: str = "none"
    """Which biases were trained, in PEFT's words."""
    facts: tuple[str, ...] = ()
    """Tensors that are read as numbers, such as alpha."""
    own_files: tuple[Path, ...] = ()
    """The weight file, or the shards."""
    joined: Mapping[Path, str] = field(default_factory=dict)
    """Further files of the folder that are used as well, each with its name for --ignore."""
    joined_digest: str = ""
    """The digest of the tensors in the joined files; "" without such files."""
    ignored: tuple[str, ...] = ()
    """Weights in the folder that --ignore left out, by name."""
    leaves_out: Callable[[str], str] = field(default=_none, compare=False, repr=False)
    """Returns the member of the config that leaves out a module of the trained model, or ""."""

    def files(self) -> tuple[Path, ...]:
        """Return every file that is read, `path` first: an index, shards, those beside."""
        return tuple(dict.fromkeys((self.path, *self.own_files, *self.joined)))

    def names(self) -> list[str]:
        """Return the names of all adapted modules and full tensors."""
        return [*(u.module for u in self.updates), *(r.name for r in self.replacements)]
