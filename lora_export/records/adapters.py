"""What an adapter says, and what is known about the modules it adapts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.records.files import TensorRef


MergeRecipe = Literal["loralib", "peft", "peft-safe"]
"""Whose merge: loralib's eval(), PEFT's merge_and_unload(), the same with safe_merge=True."""

ScalingRule = Literal[
    "alpha / rank", "alpha / rank in float32", "alpha / sqrt(rank)", "alpha / (rank + 1e-5)", "1"
]
"""How a library makes the scaling of alpha and rank; the merge and the proof each compute it."""


Family = Literal["loralib", "litgpt"]
"""Whose layers an update belongs to, where no configuration names a tuner."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an adapter's own configuration says about one of its updates.

    tuner: the family of arithmetic, which a layer kind lists among its `tuners`. rank: None where
    only the factors tell it. fan_in_fan_out: as the file says, which may be wrong: no more than a
    hint for square weights. indices: rows of the table that the update is about. version: of the
    library that wrote the file, where the arithmetic depends on it. held_as_base: the library
    rounds the factors to the weight's dtype when it loads them, of VeRA the projection alone. seed:
    of the projection that all updates of the adapter share, where the file leaves it out.
    zero_says_nothing: alpha = 0 is read as the rank by trainers and as no update by merge scripts.
    rounds_first: the library's plain merge rounds the update as its safe merge does.
    """

    tuner: str
    alpha: float
    rank: int | None
    rule: ScalingRule = "alpha / rank"
    fan_in_fan_out: bool | None = None
    indices: tuple[int, ...] = ()
    source: str = ""
    version: str = ""
    held_as_base: bool = False
    seed: int | None = None
    zero_says_nothing: bool = False
    rounds_first: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """The factors an adapter holds for one of its modules, by role ("A", "B").

    parameter: the module's parameter that is updated. said: None where the file says nothing
    beside the factors, as loralib's. instead: the same factors as updates of other parameters,
    where only the base tells which of them it is. level: of updates that lie around each other
    in one module, the outermost, of the parameter that the module registers last, has 0.
    optional: there is none where the base lacks the parameter, or has zeros there. family: the
    layers that can read it where `said` is None. own: what files beside the adapter say of it then;
    the options add what is missing, and must not contradict it. outside: the member of the
    adapter's configuration that leaves the module out, so that the library ignores the factors; ""
    where it does not.
    """

    module: str
    factors: Mapping[str, TensorRef]
    parameter: str = "weight"
    said: Said | None = None
    instead: tuple[Update, ...] = ()
    level: int = 0
    optional: bool = False
    family: Family = "loralib"
    own: Facts | None = None
    outside: str = ""

    def readings(self) -> tuple[Update, ...]:
        """Every update that the factors can be."""
        return (self, *self.instead)


Origin = Literal["shared", "module", "base", "under"]
"""What a full tensor is loaded into: the parameter of that name, whoever else shares it; a module
of the adapter's own in the place of the base's (PEFT's modules_to_save); the layer under an
update, of which it is a copy (PEFT's base_layer), or in which it was trained."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A full tensor of the adapter file that takes the place of the base's tensor `name`.

    outside: why the library ignores it, by the adapter's configuration; "" where it does not.
    """

    name: str
    ref: TensorRef
    origin: Origin = "shared"
    outside: str = ""


def _none(_: str) -> str:
    """A file without a configuration leaves nothing out."""
    return ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a dialect understood: every tensor of the file is in an update, a replacement or a fact.

    In exactly one, but for factors that several updates share. wrapper: as of the file. digest:
    SHA-256 of what the tensors hold, whatever the file's format. config_file: where the adapter's
    own configuration lies, if it has one. trained_on, revision: the base's name and revision in it.
    notes: how the file was chosen, in words; doubts: what a user should be warned of in it. task:
    PEFT's task_type. heads: names of modules that the adapter brings whole, also where the base has
    none of that name. replication: (first, last + 1) layers, of which the model is put together
    anew; empty where it stays as it is. left_out: tensors that take no part, and why. bias: which
    biases were trained, in PEFT's words. facts: tensors that are read as numbers, such as alpha.
    own_files: the weight file, or the shards. joined: further files of the folder whose tensors are
    used as well, each with the name that --ignore takes. joined_digest: SHA-256 of what their
    tensors hold. ignored: weights in the folder that --ignore left out. leaves_out: the
    member of the configuration that leaves out a module of the trained model, by name; "" where
    none does.
    """

    path: Path
    dialect: str
    updates: tuple[Update, ...]
    replacements: tuple[Replacement, ...]
    weight: float = 1.0
    wrapper: str = ""
    digest: str = ""
    config_file: Path | None = None
    trained_on: str = ""
    revision: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    task: str = ""
    heads: tuple[str, ...] = ()
    replication: tuple[tuple[int, int], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    bias: str = "none"
    facts: tuple[str, ...] = ()
    own_files: tuple[Path, ...] = ()
    joined: Mapping[Path, str] = field(default_factory=dict)
    joined_digest: str = ""
    ignored: tuple[str, ...] = ()
    leaves_out: Callable[[str], str] = field(default=_none, compare=False, repr=False)

    def files(self) -> tuple[Path, ...]:
        """Every file that is read, `path` first: an index, shards, those beside."""
        return tuple(dict.fromkeys((self.path, *self.own_files, *self.joined)))

    def names(self) -> list[str]:
        """Names of all adapted modules and full tensors."""
        return [*(u.module for u in self.updates), *(r.name for r in self.replacements)]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loralib file does not hold about a module; None where not known.

    Reproduces the constructor arguments of loralib 0.1.2 layers. `rank` is only read from a model,
    of a module that holds factors. `embeds` is False for a plain layer that is no embedding.
    `n_head` and `n_query_groups` divide a fused query, key and value of litgpt; its rows lie group
    by group where `by_group` is True. `source` says where the facts come from, for messages.
    """

    alpha: float | None = None
    fan_in_fan_out: bool | None = None
    enable_lora: tuple[bool, ...] | None = None
    kind: str | None = None
    rank: int | None = None
    embeds: bool | None = None
    n_head: int | None = None
    n_query_groups: int | None = None
    by_group: bool | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a user's own model tells about itself, without its weights; names without wrappers.

    modules: facts by name of a loralib module, and the storage order of plain ones.
    tensors: shape of every entry of the state dict less the low-rank factors.
    ties: groups of names that are one parameter.
    normed: embeddings with max_norm, which no merge can reproduce.
    shared: groups of names that are one module. change: the prefix of the network's own names, and
    what stands for it in the names here, which are the base's. outside: names of tensors that are
    the same in both.
    """

    source: str
    modules: Mapping[str, Facts]
    tensors: Mapping[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...] = ()
    normed: frozenset[str] = frozenset()
    shared: tuple[tuple[str, ...], ...] = ()
    change: tuple[str, str] = ("", "")
    outside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Delta:
    """One update resolved against its base tensor: all that the arithmetic needs.

    kind: name of the layer kind. shape: of the base tensor. scaling: by `rule`, the library's
    Python float. weight: the user's factor for the adapter. module: the model's own name for the
    module (the base's name of the tensor less its last component). recipe: whose arithmetic and
    rounding, where the plan does not ask for the exact sum. indices: see Said. parameter: the
    module's parameter that is updated. dtype: of the base tensor, to which a library may round
    between two steps. start: the row of the update's matrix at which this tensor begins, where the
    base stores the parameter in several tensors. held: the dtype to which the library rounds the
    factors when it loads them (where there is a projection, that alone); empty where it takes them
    as they are. loaded: the dtype that the library has for factors which the file holds in a wider
    one, else empty. projection: (seed, rows of B, columns of A) of a shared projection that is
    drawn anew, else empty. heads: (heads of the query, groups of key and value) of a fused weight
    of litgpt, else empty. by_group: its rows lie group by group.
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
    recipe: MergeRecipe = "loralib"
    rule: ScalingRule = "alpha / rank"
    indices: tuple[int, ...] = ()
    parameter: str = "weight"
    dtype: str = "F32"
    start: int = 0
    held: str = ""
    loaded: str = ""
    projection: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    by_group: bool = False
