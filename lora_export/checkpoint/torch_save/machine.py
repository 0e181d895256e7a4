"""The machine that a pickle drives: its stack, its memo, and the calls that it asks for.

For a call of a known name, our own builder makes the value. Any other call gives an inert stand-in
and is noted by name. The reader of the file decides whether to refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_export.checkpoint.torch_save.callables import INSTANCE_MAKERS, is_of_python
from lora_export.checkpoint.torch_save.inert import SAVE_AGAIN, Global, Opaque
from lora_export.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.checkpoint.torch_save.callables import Named

Builder: TypeAlias = "Callable[[tuple[Any, ...]], object]"
"""Makes a value from the arguments of a call; must not run for long and may raise ValueError."""

MARK = object()
"""What the opcode MARK pushes. No opcode may take it for a value."""


@dataclass(slots=True)
class Machine:
    """The state of reading one pickle."""

    builders: Mapping[str, Builder]
    """How to make the value of a call, by dotted name."""
    persistent: Callable[[object], object]
    """Makes the value of a persistent id; torch stores its storages so."""
    named: Named
    """Collects the other names that the pickle calls."""
    budget: int
    """How much more work the pickle may ask for, in opcodes and in items that are copied."""
    where: str
    """The file's name for messages."""
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def spend(self, work: int) -> None:
        """Take work from the budget.

        Raises:
            LimitError: the budget is used up.
        """
        self.budget -= work
        if self.budget < 0:
            raise LimitError(
                "its pickle asks for more work than the size of the file explains",
                where=self.where,
                hint=SAVE_AGAIN,
                cause="limit/size",
            )

    def top(self) -> Any:
        """Return the uppermost value."""
        if self.stack[-1] is MARK:
            raise IndexError("a mark instead of a value")
        return self.stack[-1]

    def pop(self) -> Any:
        """Take the uppermost value off the stack."""
        value = self.top()
        del self.stack[-1]
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack, and the mark; return the values."""
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        items.reverse()
        return items

    def call(self, function: object, arguments: object) -> object:
        """Return the value of a call that the pickle asks for: our builder's, or a stand-in."""
        if not isinstance(arguments, tuple):
            raise TypeError("a call whose arguments are no tuple")
        # A builder may copy its arguments. One list can be the argument of thousands of calls.
        self.spend(_copied(arguments))
        if not isinstance(function, Global):
            name = f"an unnamed object ({type(function).__name__})"
            self.named.calls[name] = None
            return Opaque(name)
        if nested := _nested_name(function, arguments):
            self.named.members[nested.name] = arguments[0].name
            return nested
        self.named.call(function.name, arguments)
        if function.name in INSTANCE_MAKERS and arguments and isinstance(arguments[0], Global):
            return Opaque(arguments[0].name)
        builder = self.builders.get(function.name)
        return builder(arguments) if builder else Opaque(function.name, arguments)

    def instance(self, kind: object, arguments: object) -> object:
        """Return the stand-in or built value of a class's instance (NEWOBJ)."""
        if not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise TypeError("an instance of something that is no class")
        self.spend(_copied(arguments))
        builder = self.builders.get(kind.name)
        if builder and kind.name.rpartition(".")[2].startswith("_rebuild"):
            raise TypeError("an instance of a function")
        if builder:
            return builder(arguments)
        self.named.instance(kind.name)
        return Opaque(kind.name, arguments)


def _copied(arguments: tuple[Any, ...]) -> int:
    """Count the items of the first arguments, which are all that a builder takes."""
    return sum(len(one) for one in arguments[:8] if isinstance(one, (dict, list, tuple)))


def _nested_name(function: Global, arguments: tuple[Any, ...]) -> Global | None:
    """Return the name of a class inside a class, or None for another call.

    Protocols before 4 write such a name as getattr(Outer, "Inner").
    """
    if function.name != "builtins.getattr":
        return None
    match arguments:
        case (Global(name=outer), str(inner)) if inner.isidentifier() and not is_of_python(outer):
            return Global(f"{outer}.{inner}")
    return None
