"""Where a library's model holds, while it runs, what checkpoints and adapters call by a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Place:
    """The model's own tensor `name`, or a part of it.

    expert: of the model's stack of experts, where it is one of them. part: (number, of how many
    parts that lie below each other). obstacle: why the tensor is no such part, in words, else "".
    """

    name: str
    expert: int | None = None
    part: tuple[int, int] = (0, 1)
    obstacle: str = ""

    @property
    def is_whole(self) -> bool:
        """The stored tensor is the model's."""
        return self.expert is None and self.part == (0, 1) and not self.obstacle


@dataclass(frozen=True, slots=True)
class NameTable:
    """The names of a model that may be stored under others.

    source: whose table it is, for messages. shapes: of every tensor of the model, in the order in
    which its modules register them. places: for names of either sort, where the tensors are.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    places: Callable[[Iterable[str]], Mapping[str, Place]] = field(repr=False)
