"""The lists of what a pickle may name to call: rebuilders of tensors, containers and values.

Nothing is ever called; the lists decide which files are refused. A trainer's checkpoint may hold
objects beside its weights. A file that names a function to run is no mere checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from lora_export.checkpoint.torch_save.inert import Global
from lora_export.report.columns import first_names

REBUILDERS = "torch._utils._rebuild_"
"""How the names of torch's own rebuilders begin."""

WITH_FUNCTION = frozenset(
    {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
)
"""Rebuilders that call the function which their first argument names."""

INSTANCE_MAKERS = frozenset(
    {"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}
)
"""Functions that make an instance of the class which their first argument names."""


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_KNOWN = frozenset(
    WITH_FUNCTION
    | _names(
        "builtins",
        "bool bytearray bytes complex dict float frozenset int list object range set slice str "
        "tuple xrange",
    )
    | _names("collections", "Counter OrderedDict defaultdict deque")
    | _names("datetime", "date datetime time timedelta timezone")
    | _names("pathlib", "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
    | _names("pathlib._local", "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
    | _names("numpy", "dtype ndarray")
    | {
        f"{module}.multiarray.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    }
    | _names("numpy.core.numeric", "_frombuffer")
    | _names("numpy._core.numeric", "_frombuffer")
    | _names("numpy.ma.core", "_mareconstruct")
    | _names("numpy.random._pickle", "__bit_generator_ctor __generator_ctor __randomstate_ctor")
    | _names("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence")
    | _names("torch", "Size Tensor device nn.Parameter nn.parameter.Parameter")
    | {
        "_codecs.encode",
        "argparse.Namespace",
        "decimal.Decimal",
        "fractions.Fraction",
        "functools.partial",
        "random.Random",
        "re._compile",
        "torch.nested._internal.nested_tensor._rebuild_njt",
        "torch.serialization._get_layout",
        "types.GenericAlias",
        "types.SimpleNamespace",
        "uuid.UUID",
    }
)
"""Calls that make a value of their arguments, and do nothing else."""

_OF_PYTHON = sys.stdlib_module_names | {"builtins"}
_SHOWN = 5
_NAME_LENGTH = 200
"""How much of a name a message shows; a hostile file may hold a name of megabytes."""


@dataclass(slots=True)
class Named:
    """What a pickle names to call. The dicts serve as ordered sets of dotted names."""

    calls: dict[str, None] = field(default_factory=dict)
    """Functions for which the file is refused."""
    objects: dict[str, None] = field(default_factory=dict)
    """Classes whose objects are left closed."""
    members: dict[str, str] = field(default_factory=dict)
    """The owner of each name that the pickle takes out of a class: a class in it, or a member.

    Python 3.11.0 to 3.11.3 writes the members of enumerations so, and calls nothing.
    """

    def call(self, name: str, arguments: tuple[object, ...]) -> None:
        """Note a call of `name`: a known one, an object of a class, or a function to refuse."""
        if name in WITH_FUNCTION or name in INSTANCE_MAKERS:
            first = arguments[0] if arguments else None
            self._inner(name, first.name if isinstance(first, Global) else type(first).__name__)
        elif not (_is_known(name) or _is_typing(name, arguments)):
            (self.objects if _is_class(name) else self.calls)[name] = None

    def _inner(self, maker: str, name: str) -> None:
        if maker in INSTANCE_MAKERS:
            self.instance(name)
        elif not _is_known(name):
            self.calls[name] = None

    def instance(self, name: str) -> None:
        """Note an instance of the class `name`, made without a call of the class."""
        if not _is_known(name):
            (self.calls if is_of_python(name) else self.objects)[name] = None

    def listed_calls(self) -> str:
        """Return the functions for a message; "" when there are none."""
        return _listed(self.calls)

    def listed_objects(self) -> str:
        """Return the classes for a message; "" when there are none."""
        classes = {*self.objects, *self.calls, *self.members.values()}
        members = (name for name in self.members if name not in classes)
        owners = [self.members[name] for name in members if not _is_known(self.members[name])]
        return _listed(dict.fromkeys([*self.objects, *owners]))


def is_of_python(name: str) -> bool:
    """Return whether a dotted name begins with a module of Python's standard library."""
    return name.partition(".")[0] in _OF_PYTHON


def _is_known(name: str) -> bool:
    return name in _KNOWN or name.startswith(REBUILDERS)


def _is_typing(name: str, arguments: tuple[object, ...]) -> bool:
    """Return whether a call spells a type.

    `Dict[str, int]` is pickled as a call of getitem, `int | None` as calls of or_ and type(None).
    """
    if name == "builtins.type":
        return arguments == (None,)
    first = arguments[0].name if arguments and isinstance(arguments[0], Global) else ""
    if name in {"builtins.reduce", "_functools.reduce"}:
        return first == "_operator.or_"
    return name == "_operator.getitem" and first.startswith("typing.")


def _is_class(name: str) -> bool:
    """Return whether a name outside the standard library is written as PEP 8 writes a class.

    Members of enumerations and dictionaries with attributes are made by a call of their class.
    """
    return not is_of_python(name) and name.rpartition(".")[2].lstrip("_")[:1].isupper()


def _listed(names: dict[str, None]) -> str:
    return first_names([name[:_NAME_LENGTH] for name in names], _SHOWN)
