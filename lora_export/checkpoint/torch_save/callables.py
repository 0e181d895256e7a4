"""What a pickle may name to call: rebuilders of tensors, containers and values, and no more.

Nothing is ever called. The lists decide which files are refused. A checkpoint of an honest trainer
holds objects beside its weights; a file that names a function to run has another purpose.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.checkpoint.torch_save.inert import Global
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Iterable

REBUILDERS = "torch._utils._rebuild_"
WITH_FUNCTION = frozenset(
    {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
)
"""Rebuilders that call the function which their first argument names."""

INSTANCE_MAKERS = frozenset(
    {"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}
)
"""They make an instance of the class that their first argument names."""


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


@dataclass(slots=True)
class Named:
    """What a pickle names to call, by name. calls: functions, refused. objects: left closed."""

    calls: dict[str, None] = field(default_factory=dict)
    objects: dict[str, None] = field(default_factory=dict)

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

    def told_calls(self) -> str:
        """The functions, for a message; "" when there are none."""
        return _listed(self.calls)

    def told_objects(self) -> str:
        """The classes, for a message; "" when there are none."""
        return _listed(self.objects)


def is_of_python(name: str) -> bool:
    """Whether a dotted name begins with a module of Python itself."""
    return name.partition(".")[0] in _OF_PYTHON


def _is_known(name: str) -> bool:
    return name in _KNOWN or name.startswith(REBUILDERS)


def _is_typing(name: str, arguments: tuple[object, ...]) -> bool:
    """Whether a call spells a type: Dict[str, int] by getitem, int | None by or and type(None)."""
    if name == "builtins.type":
        return arguments == (None,)
    first = arguments[0].name if arguments and isinstance(arguments[0], Global) else ""
    if name in {"builtins.reduce", "_functools.reduce"}:
        return first == "_operator.or_"
    return name == "_operator.getitem" and first.startswith("typing.")


def _is_class(name: str) -> bool:
    """Whether a name of a package is that of a class, as Python's style guide writes one.

    Members of enumerations, dictionaries with attributes and the like are made by such a call.
    """
    return not is_of_python(name) and name.rpartition(".")[2].lstrip("_")[:1].isupper()


def _listed(names: Iterable[str]) -> str:
    return first_names([name[:200] for name in names], _SHOWN)
