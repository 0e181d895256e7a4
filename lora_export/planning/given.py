"""The inputs of a plan, which are fixed before the first tensor gets its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.planning.facts.architecture import Layers
    from lora_export.planning.facts.user_facts import FactTable
    from lora_export.planning.merge_options import Options
    from lora_export.planning.names.base_names import BaseNames
    from lora_export.records import Adapter, Checkpoint, ModelFacts, NameTable, TensorRef


@dataclass(frozen=True, slots=True)
class Tie:
    """The names of one parameter, in the base's spelling."""

    #: All names; the base may store only some of them.
    names: tuple[str, ...]
    #: A name that the base stores.
    stored: str


@dataclass(frozen=True, slots=True)
class Given:
    """The base, the adapters, the options, and the facts that their files do not hold."""

    #: The base, without low-rank factors of its own.
    base: Checkpoint
    #: Its tensors by the names that they have in the result; a repeated layer has several.
    stored: Mapping[str, TensorRef]
    #: These names, also findable without their wrappers.
    names: BaseNames
    #: Groups of names that are one parameter of the model.
    ties: tuple[Tie, ...]
    #: The adapters, in the order of the command line.
    adapters: tuple[Adapter, ...]
    #: The facts of modules that no adapter file has.
    facts: FactTable
    #: The facts of the user's own model; None where --model names none.
    model: ModelFacts | None
    options: Options
    #: Whether only some adapters give alpha themselves; the options then apply to the others.
    is_mixed: bool = False
    #: Returns the names of the running model; None where they are not known.
    name_table: Callable[[], NameTable | None] = lambda: None
    #: Returns the kinds of the model's layers; None where they are not known.
    layers_of: Callable[[], Layers | None] = lambda: None

    @property
    def joined(self) -> Mapping[Path, str]:
        """Return files beside adapters that are merged too, each with its name for --ignore."""
        return {file: name for adapter in self.adapters for file, name in adapter.joined.items()}

    def stored_name(self, name: str) -> str:
        """Return the stored name that has the value of `name`: itself, or one it is tied to."""
        if name in self.stored:
            return name
        return next(tie.stored for tie in self.ties if name in tie.names)

    def tensor(self, name: str) -> TensorRef:
        """Return the base's tensor that holds the value of `name`."""
        return self.stored[self.stored_name(name)]

    def tied_to(self, name: str) -> tuple[str, ...]:
        """Return all names of the parameter called `name`; empty where it has no other name."""
        return next((tie.names for tie in self.ties if name in tie.names), ())

    def way_out(self, ref: TensorRef, hint: str) -> str:
        """Extend `hint` by --ignore, if `ref` lies in a file beside the adapter's."""
        name = self.joined.get(ref.file)
        return f"{hint}; --ignore '{name}' leaves the file out" if name else hint
