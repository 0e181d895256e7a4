"""Reads the pickle language without ever importing, calling or building anything of the file.

The interpreter is our own. Every class or function that a pickle names becomes a `Global`. Every
call becomes an `Opaque`, unless the caller has a builder for that name. Nothing can be executed.
"""

from __future__ import annotations

import pickletools
import re
import struct
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_export.checkpoint.reading import COPY_AGAIN
from lora_export.checkpoint.torch_save.callables import Named
from lora_export.checkpoint.torch_save.inert import (
    MAX_VALUE_BYTES,
    SAVE_AGAIN,
    Built,
    Global,
    Opaque,
    PickleError,
    mapping_key,
)
from lora_export.checkpoint.torch_save.machine import MARK, Machine
from lora_export.errors import InputError, LimitError
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.checkpoint.torch_save.inert import BoundedReader
    from lora_export.checkpoint.torch_save.machine import Builder

OPCODES = 700_000
"""Opcodes of one pickle that need no explanation by the size of its file."""

BYTES_AN_OPCODE = 50
"""Bytes of the file for each further opcode. A state dict takes about 40 opcodes a tensor."""

_LONG_TEXTS = {"BINUNICODE": 4, "BINUNICODE8": 8}
"""The opcodes of long texts, with the bytes of their length. NumPy's arrays are written so."""

_LONG_VALUES = {*_LONG_TEXTS, "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING"}
"""The opcodes whose values may be long."""

MAX_LONG_VALUE = 64_000_000
"""Bytes of one such value."""

MAX_SHORT_VALUE = 64_000
"""Bytes of a number, of a name, or of a value written as a line of text."""

MAX_WIDE_TEXT = 4_000_000
"""Bytes of a text with characters above U+00FF: Python keeps up to four bytes for each character.

The text of an array has only characters up to that one.
"""

_WIDE = re.compile(rb"[\xc4-\xff]")
"""The first byte of a character above U+00FF in UTF-8."""

_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}
"""Modules of Python 2 by their names today; torch.save still writes the old ones (protocol 2)."""

_BROKEN = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error)
"""What pickletools and our operations raise for a pickle that is cut short or inconsistent."""


def read_pickle(
    reader: BoundedReader,
    builders: Mapping[str, Builder],
    persistent: Callable[[object], object],
    where: str,
    named: Named | None = None,
    *,
    file_size: int = 0,
) -> object:
    """Read the object of one pickle, inert; the reader is left after its last byte.

    Args:
        reader: the file, at the pickle's first byte.
        builders: make the value of a call, by "module.name", from its arguments.
        persistent: makes the value of a persistent id.
        where: the file's name for messages.
        named: collects the other names that the pickle calls.
        file_size: bytes of the file, which explain the number of opcodes.

    Raises:
        InputError: the pickle is broken, or readers would differ about it.
        LimitError: the pickle is too big, or asks for too much work.
    """
    budget = OPCODES + file_size // BYTES_AN_OPCODE
    machine = Machine(builders, persistent, named or Named(), budget, where)
    try:
        return _run(machine, reader)
    except PickleError as fault:
        raise InputError(
            str(fault), where=where, hint=fault.hint, cause="input/torch-file"
        ) from fault
    except _BROKEN as error:
        raise InputError(
            f"broken pickle: {type(error).__name__}: {reason_of(error)}",
            where=where,
            hint=COPY_AGAIN,
            cause="input/torch-file",
        ) from error


def _run(machine: Machine, reader: BoundedReader) -> object:
    """Do what each opcode asks for, up to STOP; return the object that is left.

    pickletools.genops does not let the length of a value depend on its opcode.
    """
    taken = 0
    while True:
        machine.spend(1)
        reader.longest = MAX_SHORT_VALUE
        opcode = _next(reader)
        argument = _argument(opcode, reader)
        if argument is not None:
            taken += sys.getsizeof(argument)
            if taken > MAX_VALUE_BYTES:
                raise _too_long("the values of its pickle", MAX_VALUE_BYTES, reader)
        _OPERATIONS[opcode.name](machine, argument)
        if opcode.name == "STOP":
            return machine.pop()


_CODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def _next(reader: BoundedReader) -> pickletools.OpcodeInfo:
    code = reader.read(1)
    if not code:
        raise ValueError("the pickle ends without the opcode STOP")
    return _CODES[code]


def _argument(opcode: pickletools.OpcodeInfo, reader: BoundedReader) -> Any:
    """Read the argument of an opcode; None for one that has none."""
    kind = opcode.arg
    if kind is None:
        return None
    if opcode.name in _LONG_VALUES:
        reader.longest = MAX_LONG_VALUE
    if opcode.name not in _LONG_TEXTS:
        return kind.reader(reader)  # type: ignore[arg-type]
    length = int.from_bytes(reader.read(_LONG_TEXTS[opcode.name]), "little")
    content = reader.read(length)
    if len(content) != length:
        raise ValueError(f"a text of {length} bytes is cut short")
    if length > MAX_WIDE_TEXT and _WIDE.search(content):
        raise _too_long("a text of its pickle", MAX_WIDE_TEXT, reader)
    return content.decode("utf-8", "surrogatepass")


def _too_long(what: str, most: int, reader: BoundedReader) -> LimitError:
    text = f"{what} takes more than {most:,} bytes"
    return LimitError(text, where=reader.where, hint=SAVE_AGAIN, cause="limit/size")


Operation: TypeAlias = "Callable[[Machine, Any], None]"


def _nothing(_machine: Machine, _argument: object) -> None:
    """Do nothing: frames and protocol numbers carry no value, and STOP ends the loop."""


def _push_argument(machine: Machine, argument: object) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], object]) -> Operation:
    return lambda machine, _argument: machine.stack.append(make())


def _from_mark(make: Callable[[list[Any]], object]) -> Operation:
    return lambda machine, _argument: machine.stack.append(make(machine.pop_to_mark()))


def _tuple_of(length: int) -> Operation:
    def operation(machine: Machine, _argument: object) -> None:
        machine.stack.append(tuple(_take(machine, length)))

    return operation


def _text(machine: Machine, argument: str) -> None:
    """Push a string of Python 2. torch reads its bytes as UTF-8, pickletools as Latin-1."""
    content = argument.encode("latin-1")
    try:
        machine.stack.append(content.decode())
    except UnicodeDecodeError:  # not text but, for example, the state of an array
        machine.stack.append(content)


def _pairs(items: list[Any]) -> dict[object, object]:
    return {mapping_key(items[at]): items[at + 1] for at in range(0, len(items), 2)}


def _set_items(machine: Machine, items: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, dict):
        target.update(_pairs(items))
    elif not isinstance(target, Opaque):  # the items of a closed object are left closed too
        raise TypeError(f"items given to a {type(target).__name__}")


def _append_items(machine: Machine, items: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise TypeError(f"items appended to a {type(target).__name__}")


def _take(machine: Machine, count: int) -> list[Any]:
    return [machine.pop() for _ in range(count)][::-1]


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
    machine.stack.append(machine.top())


def _get(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _memoize(machine: Machine, _argument: object) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _name(module: str, name: str) -> Global:
    return Global(f"{_OLD_MODULES.get(module, module)}.{name}")


def _global(machine: Machine, names: str) -> None:
    module, _, name = names.partition(" ")
    machine.stack.append(_name(module, name))


def _stack_global(machine: Machine, _argument: object) -> None:
    module, name = _take(machine, 2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("the name of a class that is no string")
    machine.stack.append(_name(module, name))


def _old_instance(machine: Machine, names: str) -> None:
    arguments = tuple(machine.pop_to_mark())
    _global(machine, names)
    machine.stack.append(machine.call(machine.pop(), arguments))


def _old_object(machine: Machine, _argument: object) -> None:
    function, *arguments = machine.pop_to_mark()
    machine.stack.append(machine.call(function, tuple(arguments)))


def _call(machine: Machine, _argument: object) -> None:
    machine.stack.append(machine.call(*_take(machine, 2)))


def _instance(machine: Machine, _argument: object) -> None:
    machine.stack.append(machine.instance(*_take(machine, 2)))


def _instance_with_keywords(machine: Machine, _argument: object) -> None:
    kind, arguments, _keywords = _take(machine, 3)
    machine.stack.append(machine.instance(kind, arguments))


def _give_state(machine: Machine, _argument: object) -> None:
    """Give an object its state.

    An OrderedDict's attributes (_metadata of a state dict) do not matter and are dropped. Those of
    a tensor may replace its values, so the file is refused.
    """
    state = machine.pop()
    target = machine.top()
    if isinstance(target, Opaque):
        target.state = state
    elif not isinstance(target, Built):
        raise PickleError(
            "its pickle changes a value after it was made, and readers differ about the result",
            SAVE_AGAIN,
        )


def _persistent(machine: Machine, _argument: object) -> None:
    identifier = machine.top()
    machine.spend(len(identifier) if isinstance(identifier, tuple) else 1)
    machine.stack.append(machine.persistent(machine.pop()))


_OPERATIONS: Mapping[str, Operation] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
            "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8",
        ),
        _push_argument,
    ),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "MARK": _constant(lambda: MARK),
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
    "POPMARK": _pop_mark,
    "DUP": _duplicate,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _old_instance,
    "OBJ": _old_object,
    "REDUCE": _call,
    "NEWOBJ": _instance,
    "NEWOBJ_EX": _instance_with_keywords,
    "BUILD": _give_state,
    "BINPERSID": _persistent,
}  # fmt: skip
"""Every opcode that is understood. torch writes none of the others (PERSID, EXT*, buffers)."""
