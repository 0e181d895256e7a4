"""What a plan is made from: fixed before the first tensor gets its place."""

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
    """Names of one parameter, as the base calls them."""

    #: All of them; the base may store some only.
    names: tuple[str, ...]
    #: One that the base stores.
    stored: str


@dataclass(frozen=True, slots=True)
class Given:
    """The base, the adapters, and what is known about them beside their files."""

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
    #: What no adapter file says of its modules.
    facts: FactTable
    #: What the user's own model tells; None where none is named.
    model: ModelFacts | None
    options: Options
    #: Some adapters give alpha themselves; the options then speak of the others.
    is_mixed: bool = False
    #: Asks for the names of the running model; None where nothing knows them.
    name_table: Callable[[], NameTable | None] = lambda: None
    #: Asks for the kinds of the model's layers; None where nothing knows them.
    layers_of: Callable[[], Layers | None] = lambda: None

    @property
    def joined(self) -> Mapping[Path, str]:
        """Files beside adapters whose tensors take part, each with the name that --ignore takes."""
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
        """Return all names of the parameter that `name` is one of; empty where it has no other."""
        return next((tie.names for tie in self.ties if name in tie.names), ())

    def way_out(self, ref: TensorRef, hint: str) -> str:
        """Extend `hint` by how to leave out a file beside the adapter's, if `ref` lies in one."""
        name = self.joined.get(ref.file)
        return f"{hint}; --ignore '{name}' leaves the file out" if name else hint
