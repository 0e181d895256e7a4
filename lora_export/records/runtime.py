"""Where a library's model holds, while it runs, the tensors that files name otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a stored tensor in the model's own tensor `name`."""

    name: str
    expert: int | None = None
    """The number in the model's stack of experts; None if there is no stack."""
    part: tuple[int, int] = (0, 1)
    """(number, count) among parts that lie below each other in the tensor."""
    obstacle: str = ""
    """Why the stored tensor is no such part, else ""."""

    @property
    def is_whole(self) -> bool:
        """Return whether the stored tensor is the whole of the model's."""
        return self.expert is None and self.part == (0, 1) and not self.obstacle


@dataclass(frozen=True, slots=True)
class NameTable:
    """The names of a model's tensors, which files may store under other names."""

    source: str
    """Whose table it is, for messages."""
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    """The shape of every tensor of the model, in the order in which its modules register them."""
    places: Callable[[Iterable[str]], Mapping[str, Place]] = field(repr=False)
    """Returns where the tensors are, for names of the files or of the model."""
