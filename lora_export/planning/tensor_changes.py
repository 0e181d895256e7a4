"""The changes of the base's tensors: fitting enters them, and the steps are made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.planning.given import Given
    from lora_export.records import Delta, TensorRef


@dataclass(slots=True)
class TensorChanges:
    """Updates and full tensors, by the names of the result."""

    #: The updates of each tensor, in the order of the adapters.
    merged: dict[str, list[Delta]] = field(default_factory=dict)
    #: Full tensors that take the place of a stored tensor.
    replaced: dict[str, TensorRef] = field(default_factory=dict)
    #: Full tensors under names that the base does not store.
    added: dict[str, TensorRef] = field(default_factory=dict)
    #: Tensors that replace the base's before any update is added, such as a resized table.
    copies: dict[str, TensorRef] = field(default_factory=dict)
    #: Names whose full tensor belongs to the adapter's own copy of a module, and not to the
    #: parameter that several modules share.
    own: set[str] = field(default_factory=set)
    #: Names of heads that the base lacks and the adapter has.
    heads: set[str] = field(default_factory=set)
    #: Full tensors of another shape than the base's, until a reason is found. Each has its place
    #: for messages, and whether it belongs to a module that the adapter holds whole.
    resized: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def deltas(self) -> list[Delta]:
        """Return every update of every tensor."""
        return [delta for listed in self.merged.values() for delta in listed]

    def whole(self) -> dict[str, TensorRef]:
        """Return every full tensor that is new or takes a stored tensor's place."""
        return {**self.added, **self.replaced}

    def full_tensor(self, name: str) -> TensorRef:
        """Return the full tensor under this name.

        Raises:
            KeyError: there is none.
        """
        return self.replaced.get(name) or self.added[name]

    def value_of(self, given: Given, name: str) -> TensorRef:
        """Return the value of `name` before any update, unless the adapter has its own module."""
        stored = given.stored_name(name)
        return self.copies.get(stored, given.stored[stored])
