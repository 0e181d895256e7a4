"""Reads the pickle language without ever importing, calling or building anything of the file.

The interpreter is ours: every class or function a pickle names is a mere `Global`, every call of
one an `Opaque`, unless the caller has a builder of its own for that name. Nothing can be executed.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_export.checkpoint.inert import Global, Opaque
from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.checkpoint.inert import BoundedReader

MAX_OPCODES = 20_000_000
"""A state dict takes about 40 opcodes a tensor."""

Builder: TypeAlias = "Callable[[tuple[Any, ...]], object]"
"""Makes a value of the arguments of a call; must not run for long and may raise ValueError."""

_MARK = object()
_KEY_TYPES = (str, int, float, bytes, type(None))
_BROKEN = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error)


@dataclass(slots=True)
class Machine:
    """The state of one reading: a stack, a memo, and what to do with names that we know."""

    builders: Mapping[str, Builder]
    persistent: Callable[[object], object]
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark; the mark goes as well."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def build(self, function: object, arguments: object) -> object:
        """The value of a call that the pickle asks for: our builder's, or an inert stand-in."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            return Opaque(f"a call of {type(function).__name__}")
        builder = self.builders.get(function.name)
        return builder(arguments) if builder else Opaque(function.name, arguments)


def read_pickle(
    reader: BoundedReader,
    builders: Mapping[str, Builder],
    persistent: Callable[[object], object],
    where: str,
) -> object:
    """The object of one pickle, inert; the reader is left after its last byte.

    builders: for calls of these "module.name"s, given the arguments. persistent: makes the value
    of a persistent id. Raises InputError when the pickle is broken, LimitError when it is too big.
    """
    machine = Machine(builders, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(reader)):  # type: ignore[arg-type]
            if count > MAX_OPCODES:
                raise LimitError(f"a pickle of more than {MAX_OPCODES:,} opcodes", where=where)
            _OPERATIONS[opcode.name](machine, argument)
        return machine.stack.pop()
    except _BROKEN as error:
        raise InputError(
            f"broken pickle: {type(error).__name__}: {error}"[:300],
            where=where,
            hint="copy or download the file again",
        ) from error


Operation: TypeAlias = "Callable[[Machine, Any], None]"


def _nothing(_machine: Machine, _argument: object) -> None:
    """Frames and protocol numbers say nothing that matters here; STOP ends the loop."""


def _push_argument(machine: Machine, argument: object) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], object]) -> Operation:
    return lambda machine, _argument: machine.stack.append(make())


def _from_mark(make: Callable[[list[Any]], object]) -> Operation:
    return lambda machine, _argument: machine.stack.append(make(machine.pop_to_mark()))


def _tuple_of(length: int) -> Operation:
    def operation(machine: Machine, _argument: object) -> None:
        if len(machine.stack) < length:
            raise IndexError("the stack is too short")
        machine.stack[-length:] = [tuple(machine.stack[-length:])]

    return operation


def _pairs(items: list[Any]) -> dict[object, object]:
    return {_key(items[at]): items[at + 1] for at in range(0, len(items), 2)}


def _key(value: object) -> object:
    """A key of a dict: hashing a tuple may take for ever, so anything else becomes unique."""
    return value if isinstance(value, _KEY_TYPES) else Opaque(type(value).__name__)


def _set_items(machine: Machine, items: list[Any]) -> None:
    if isinstance(machine.stack[-1], dict):
        machine.stack[-1].update(_pairs(items))


def _append_items(machine: Machine, items: list[Any]) -> None:
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)


def _take(machine: Machine, count: int) -> list[Any]:
    return [machine.stack.pop() for _ in range(count)][::-1]


def _append(machine: Machine, _argument: object) -> None:
    _append_items(machine, _take(machine, 1))


def _appends(machine: Machine, _argument: object) -> None:
    _append_items(machine, machine.pop_to_mark())


def _set_item(machine: Machine, _argument: object) -> None:
    _set_items(machine, _take(machine, 2))


def _set_all(machine: Machine, _argument: object) -> None:
    _set_items(machine, machine.pop_to_mark())


def _pop(machine: Machine, _argument: object) -> None:
    machine.stack.pop()


def _pop_mark(machine: Machine, _argument: object) -> None:
    machine.pop_to_mark()


def _duplicate(machine: Machine, _argument: object) -> None:
    machine.stack.append(machine.stack[-1])


def _get(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: Machine, _argument: object) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _global(machine: Machine, names: str) -> None:
    machine.stack.append(Global(names.replace(" ", ".")))


def _stack_global(machine: Machine, _argument: object) -> None:
    module, name = _take(machine, 2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class name that is no string")
    machine.stack.append(Global(f"{module}.{name}"))


def _instance(machine: Machine, names: str) -> None:
    arguments = tuple(machine.pop_to_mark())
    machine.stack.append(machine.build(Global(names.replace(" ", ".")), arguments))


def _object(machine: Machine, _argument: object) -> None:
    function, *arguments = machine.pop_to_mark()
    machine.stack.append(machine.build(function, tuple(arguments)))


def _call(machine: Machine, _argument: object) -> None:
    function, arguments = _take(machine, 2)
    machine.stack.append(machine.build(function, arguments))


def _call_with_keywords(machine: Machine, _argument: object) -> None:
    function, arguments, _keywords = _take(machine, 3)
    machine.stack.append(machine.build(function, arguments))


def _give_state(machine: Machine, _argument: object) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Opaque):
        machine.stack[-1].state = state


def _persistent(machine: Machine, _argument: object) -> None:
    machine.stack.append(machine.persistent(machine.stack.pop()))


_OPERATIONS: Mapping[str, Operation] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
            "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8",
        ),
        _push_argument,
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "MARK": _constant(lambda: _MARK),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_SET": _constant(lambda: Opaque("builtins.set")),
    "LIST": _from_mark(list),
    "TUPLE": _from_mark(tuple),
    "DICT": _from_mark(_pairs),
    "FROZENSET": _from_mark(lambda _items: Opaque("builtins.frozenset")),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _pop_mark,
    "SETITEM": _set_item,
    "SETITEMS": _set_all,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_with_keywords,
    "BUILD": _give_state,
    "BINPERSID": _persistent,
}  # fmt: skip
"""Every opcode that is understood; of the rest (PERSID, EXT*, buffers) torch writes none."""
