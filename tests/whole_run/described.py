"""A digest of everything in a network that decides what it computes, but for its weights' values.

It names classes with their code, attributes, shapes, dtypes, ties and the values of buffers. Of the
weights' values it says whether all are zero, as in a network that was made without them.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import sys
import types
from contextlib import suppress
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from whole_run.origins import is_library, is_ours, is_patch

# What transformers notes about a folder's past, in a configuration and in a model; and a hash of a
# generation configuration, which Python makes another in every process.
NOTES = {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash",
         "_original_object_hash"}  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_backward_hooks")
# What nn.Module keeps for itself; parameters, buffers and children are described apart.
OWN = {"_parameters", "_buffers", "_modules", "_backward_pre_hooks", "_non_persistent_buffers_set",
       "_is_full_backward_hook", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
       "_forward_pre_hooks_with_kwargs", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
       "_load_state_dict_post_hooks", *HOOKS}  # fmt: skip
# Of this package's own records: where a tensor lies, and what a branch has counted and holds.
LEFT_OUT = {
    "TensorRef": {"file", "offset"},
    "Delta": {"adapter"},
    "Branch": {"_module", "_factors", "calls"},
}
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis))


class Unknown(Exception):  # noqa: N818 - no error: the graph is made anew
    """Something that no digest can stand for."""


class Description:
    """Feeds one digest; what is met again is named by its number, so that ties count."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        #: (storage, first byte, end, number) of every tensor: where two overlap, they are tied.
        self._places: list[tuple[int, int, int, int]] = []
        #: The classes and functions of the package under test that were met.
        self.ours: list[Any] = []
        self._is_blank = True

    def digest(self) -> bytes:
        """Return the digest of everything that was added."""
        self._say("blank" if self._is_blank else "with weights")
        ordered = sorted(self._places)
        for left, right in pairwise(ordered):
            if left[0] == right[0] and right[1] < left[2]:
                self._say("one memory", left[3], right[3], right[1] - left[1])
        return self._digest.digest()

    def _say(self, *words: object) -> None:
        self._digest.update(repr(words).encode() + b"\n")

    def add(self, value: Any) -> None:
        """Add a value of any kind.

        Raises:
            Unknown: it is of no kind that can be described.
        """
        if isinstance(value, PLAIN) and type(value) in PLAIN:
            self._say(type(value).__name__, value)
            return
        if isinstance(value, type):
            self._class(value)
            return
        if id(value) in self._numbers:
            self._say("again", self._numbers[id(value)])
            return
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)  # else another object might get its id
        self._add_new(value)

    def _add_new(self, value: Any) -> None:
        for kinds, method in _methods():
            if isinstance(value, kinds):
                method(self, value)
                return
        self._object(value)

    def _torch_word(self, value: object) -> None:
        self._say(type(value).__name__, str(value))

    def _pattern(self, value: re.Pattern) -> None:
        self._say("pattern", value.pattern, value.flags)

    def _enum(self, value: enum.Enum) -> None:
        self._class(type(value))
        self._say(value.name)

    def _path(self, value: PurePath) -> None:
        self._say("path", str(value))

    def _sequence(self, value: Any) -> None:
        self._class(type(value))
        self._say(len(value))
        for item in value:
            self.add(item)

    def _set(self, value: Any) -> None:
        self._class(type(value))
        if not all(isinstance(item, PLAIN) for item in value):
            raise Unknown("a set of objects")
        self._say(sorted(map(repr, value)))

    def _mapping(self, value: Any) -> None:
        self._class(type(value))
        self._say(len(value))
        for key, item in value.items():
            self.add(key)
            self.add(item)

    def _array(self, value: Any) -> None:
        if value.dtype.hasobject:
            raise Unknown("an array of objects")
        self._say("array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest())

    def _tensor(self, value: Any, *, with_values: bool = True) -> None:
        """Note where it lies as well: two tensors of one memory are a tie."""
        import torch

        if type(value) not in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}:
            raise Unknown(f"a tensor of the class {type(value).__name__}")
        storage = value.untyped_storage()
        self._alive.append(storage)  # else another one might get its address
        first = value.storage_offset() * value.element_size()
        place = (storage._cdata, first, first + value.nbytes, len(self._places))
        self._places.append(place)
        self._say(
            type(value).__name__, str(value.dtype), tuple(value.shape), value.stride(),
            str(value.device), value.requires_grad,
        )  # fmt: skip
        if with_values and value.device.type != "meta":
            plain = value.detach().contiguous().reshape(-1).view(torch.uint8)
            self._say(hashlib.sha256(plain.numpy().tobytes()).digest())

    def _network(self, value: Any) -> None:
        self._class(type(value))
        for hooks in HOOKS:
            if getattr(value, hooks, None):
                raise Unknown(f"{type(value).__name__} has hooks")
        for name, parameter in value._parameters.items():
            self._say("parameter", name)
            if parameter is None or id(parameter) in self._numbers:
                self.add(parameter)
                continue
            self._numbers[id(parameter)] = len(self._numbers)
            self._tensor(parameter, with_values=False)
            self._is_blank = self._is_blank and not is_filled(parameter)
        for name, buffer in value._buffers.items():
            self._say("buffer", name)
            self.add(buffer)
        for name, child in value._modules.items():
            self._say("child", name)
            self.add(child)
        self._attributes(value, OWN)

    def _attributes(self, value: Any, but: set[str] = frozenset()) -> None:
        held = dict(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            names = vars(base).get("__slots__", ())
            for name in [names] if isinstance(names, str) else names:
                if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                    held[name] = getattr(value, name)
        if is_ours(type(value).__module__):
            but |= LEFT_OUT.get(type(value).__name__, set())
        for name in sorted(held.keys() - but - NOTES):
            self._say("attribute", name)
            self.add(held[name])

    def _partial(self, value: functools.partial) -> None:
        self._say("partial")
        for part in (value.func, value.args, value.keywords):
            self.add(part)

    def _method(self, value: types.MethodType) -> None:
        self._say("method")
        self.add(value.__func__)
        self.add(value.__self__)

    def _builtin(self, value: Any) -> None:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            raise Unknown(f"a method of {type(owner).__name__}")
        self._say("builtin", getattr(value, "__module__", ""), value.__qualname__)

    def _module(self, value: types.ModuleType) -> None:
        file = getattr(value, "__file__", None)
        if file is not None and not is_library(file):
            raise Unknown(f"the module {value.__name__}")
        self._say("module", value.__name__)

    def _function(self, value: types.FunctionType) -> None:
        self._note(value)
        self._say("function", value.__module__, value.__qualname__)
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                self.add(cell.cell_contents)
        if not is_library(value.__code__.co_filename):
            self._code(value.__code__, value.__globals__)

    def _code(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """Code that is of no library, with everything of its module that it may use."""
        self._say("code", code.co_code, code.co_names, code.co_varnames, code.co_flags)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, names)
            elif isinstance(constant, frozenset):
                self._say(sorted(map(repr, constant)))
            else:
                self._say(constant)
        for name in code.co_names:
            if name in names:
                self._say("global", name)
                self.add(names[name])

    def _class(self, kind: type) -> None:
        """Name a class of a library; describe one of a test with its code."""
        for base in kind.__mro__:
            if id(base) in self._numbers:
                self._say("class again", self._numbers[id(base)])
                continue
            self._numbers[id(base)] = len(self._numbers)
            self._alive.append(base)
            self._one_class(base)

    def _one_class(self, kind: type) -> None:
        self._note(kind)
        self._say("class", kind.__module__, kind.__qualname__)
        module = sys.modules.get(kind.__module__)
        file = getattr(module, "__file__", None)
        # A user's file may be loaded under a module's name twice: then its code decides, too.
        foreign = module is not None and (file is None or is_library(file))
        for name, value in sorted(vars(kind).items()):
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if foreign:
                if is_patch(value):
                    raise Unknown(f"{kind.__qualname__}.{name} is patched")
            elif isinstance(inner, types.FunctionType):
                self._say("defines", name)
                self.add(inner)
            elif isinstance(inner, PLAIN) and name not in {"__doc__", "__firstlineno__"}:
                self._say("holds", name, inner)

    def _note(self, value: Any) -> None:
        if is_ours(value.__module__ or ""):
            self.ours.append(value)

    def _object(self, value: Any) -> None:
        """An object of any other class: its class and its attributes."""
        kind = type(value)
        slots = any("__slots__" in vars(base) for base in kind.__mro__[:-1])
        if not hasattr(value, "__dict__") and not slots:
            raise Unknown(f"a {kind.__module__}.{kind.__qualname__}")
        self._class(kind)
        if isinstance(value, dict | list | set | tuple):
            raise Unknown(f"a {kind.__qualname__}")
        self._attributes(value)


def is_filled(tensor: Any) -> bool:
    """Return whether it holds anything but zeros; one without memory holds nothing."""
    import torch

    if tensor.device.type == "meta":
        return False
    return bool(tensor.detach().reshape(-1).view(torch.uint8).any())


@functools.cache
def _methods() -> tuple[tuple[Any, Any], ...]:
    """(kinds, how they are described), the narrower first."""
    import numpy as np
    import torch

    words = (torch.dtype, torch.device, torch.layout, torch.memory_format)
    builtin = (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType)
    return (
        (torch.Tensor, Description._tensor),
        (torch.nn.Module, Description._network),
        (words, Description._torch_word),
        (re.Pattern, Description._pattern),
        (enum.Enum, Description._enum),
        (PurePath, Description._path),
        ((np.ndarray, np.generic), Description._array),
        ((tuple, list), Description._sequence),
        ((set, frozenset), Description._set),
        ((dict, types.MappingProxyType), Description._mapping),
        (functools.partial, Description._partial),
        (types.MethodType, Description._method),
        (types.ModuleType, Description._module),
        (types.FunctionType, Description._function),
        (builtin, Description._builtin),
    )
