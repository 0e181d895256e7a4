"""The machine that a pickle drives: its stack, its memo, and the calls that it asks for.

A call of a known name gives what our own builder makes of the arguments. Any other call gives an
inert stand-in and is noted by name; the reader of the file decides what that means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_export.checkpoint.torch_save.callables import INSTANCE_MAKERS, is_of_python
from lora_export.checkpoint.torch_save.inert import Global, Opaque

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.checkpoint.torch_save.callables import Named

Builder: TypeAlias = "Callable[[tuple[Any, ...]], object]"
"""Makes a value of the arguments of a call; must not run for long and may raise ValueError."""

MARK = object()


@dataclass(slots=True)
class Machine:
    """The state of one reading: a stack, a memo, and what to do with names that we know."""

    builders: Mapping[str, Builder]
    persistent: Callable[[object], object]
    named: Named
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def top(self) -> Any:  # noqa: ANN401 - whatever the pickle holds
        """The uppermost value."""
        if self.stack[-1] is MARK:
            raise IndexError("a mark where a value belongs")
        return self.stack[-1]

    def pop(self) -> Any:  # noqa: ANN401 - whatever the pickle holds
        """Take the uppermost value off the stack."""
        value = self.top()
        del self.stack[-1]
        return value

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark; the mark goes as well."""
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        items.reverse()
        return items

    def call(self, function: object, arguments: object) -> object:
        """The value of a call that the pickle asks for: our builder's, or an inert stand-in."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are no tuple")
        if not isinstance(function, Global):
            name = f"what is no name ({type(function).__name__})"
            self.named.calls[name] = None
            return Opaque(name)
        if nested := _nested_name(function, arguments):
            return nested
        self.named.call(function.name, arguments)
        if function.name in INSTANCE_MAKERS and arguments and isinstance(arguments[0], Global):
            return Opaque(arguments[0].name)
        builder = self.builders.get(function.name)
        return builder(arguments) if builder else Opaque(function.name, arguments)

    def instance(self, kind: object, arguments: object) -> object:
        """An instance of a class, made without a call of it."""
        if not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise TypeError("an instance of what is no class")
        builder = self.builders.get(kind.name)
        if builder:
            return builder(arguments)
        self.named.instance(kind.name)
        return Opaque(kind.name, arguments)


def _nested_name(function: Global, arguments: tuple[Any, ...]) -> Global | None:
    """The name of a class inside a class, which old protocols write as getattr(Outer, "Inner")."""
    if function.name != "builtins.getattr":
        return None
    match arguments:
        case (Global(name=outer), str(inner)) if inner.isidentifier() and not is_of_python(outer):
            return Global(f"{outer}.{inner}")
    return None
