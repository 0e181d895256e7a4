"""What the names in a torch pickle mean, as plain descriptions: storages, tensors, sizes, dtypes.

Reproduces torch._utils._rebuild_tensor (v1 to v3), _rebuild_parameter (_with_state) and
torch._tensor._rebuild_from_type_v2 of torch 2.13 as far as the layout of dense tensors goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.inert import Global, Opaque
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.checkpoint.opcodes import Builder
    from lora_export.records import Problem

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}  # fmt: skip
UNSUPPORTED_STORAGE_BYTES = {
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes an element of storages that no tensor of ours can lie in, to find what follows them."""

"""dtype by the last component of the storage class; its module is torch, torch.cuda or .storage."""

TORCH_DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16",
    "torch.int8": "I8", "torch.uint8": "U8", "torch.bool": "BOOL", "torch.complex64": "C64",
    "torch.uint16": "U16", "torch.uint32": "U32", "torch.uint64": "U64",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""safetensors' name of every torch dtype that it can store with whole bytes an element."""

_MAX = 2**63 - 1
_MAX_DIMENSIONS = 64
_TENSOR_WORDS = ("tensor", "parameter", "ndarray", "numpy")
_PLAIN_CLASSES = frozenset(
    {
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.Parameter",
        "torch.nn.parameter.Buffer",
    }
)


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes of the file, known by `key`: `numel` elements of `dtype`.

    width: bytes an element. start: the element that the tensors of this storage count from.
    dtype is the class of the storage where safetensors has no such dtype.
    """

    key: str
    dtype: str
    width: int
    numel: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the whole run."""
        return self.numel * self.width


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A dense tensor inside a storage; `offset` in bytes, `strides` in elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Bytes from the first to the last element used, both included."""
        if 0 in self.shape:
            return 0
        axes = zip(self.shape, self.strides, strict=True)
        reach = sum((size - 1) * stride for size, stride in axes)
        return (reach + 1) * DTYPE_BITS[self.dtype] // 8

    @property
    def layout(self) -> tuple[int, ...] | None:
        """None when row-major without gaps (strides of sizes 0 and 1 do not matter)."""
        expected = 1
        if 0 in self.shape:
            return None
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return self.strides
            expected *= size
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a storage's bytes lie in the file, or the fault that keeps us from knowing."""

    offset: int
    nbytes: int
    fault: Problem | None = None


@dataclass(frozen=True, slots=True)
class TorchObject:
    """What torch.save was given, inert, and the places of its storages by key."""

    root: object
    places: Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class StorageTable:
    """The storages that a pickle names, by key."""

    by_key: dict[str, Storage] = field(default_factory=dict)

    def add(self, identifier: object) -> object:
        """The storage of a persistent id, remembered."""
        value = make_storage(identifier)
        if isinstance(value, Storage):
            self.by_key.setdefault(value.key, value)
        return value


def make_storage(identifier: object) -> object:
    """The storage that a persistent id of torch.save names, or the class of a "module" id."""
    kind, *facts = identifier if isinstance(identifier, tuple) else (None,)
    if kind == "module" and facts:
        return facts[0]
    if kind != "storage":
        raise ValueError("a persistent id that is not torch's")
    storage_type, key, _location, numel, *rest = facts
    last = storage_type.name.rpartition(".")[2] if isinstance(storage_type, Global) else "?"
    dtype = STORAGE_DTYPES.get(last, f"torch.{last}")
    width = UNSUPPORTED_STORAGE_BYTES.get(last) or DTYPE_BITS.get(dtype, 0) // 8
    if not width:
        return Opaque(dtype, tensor_like=True)
    base = Storage(_text(key), dtype, width, _size(numel))
    return _view(base, rest[0]) if rest and rest[0] is not None else base


def _view(base: Storage, view: tuple[object, int, int]) -> Storage:
    """Files of torch < 0.4 store views of storages: (key, offset, size)."""
    _key, offset, size = view
    if _size(offset) + _size(size) > base.numel:
        raise ValueError("a view beyond the end of its storage")
    return replace(base, start=offset)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a storage key that is no string")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX:
        raise ValueError("a size that is no positive integer")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError("sizes that are no tuple")
    return tuple(_size(item) for item in value)


def _tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: str = ""
) -> object:
    if not isinstance(storage, Storage):
        return _unsupported(storage)
    dtype = dtype or storage.dtype
    if dtype not in DTYPE_BITS:
        return Opaque(dtype, tensor_like=True)
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS or prod(sizes) > _MAX:
        raise ValueError("sizes and strides that do not fit each other")
    width = DTYPE_BITS[dtype] // 8
    start = storage.start * storage.width + _size(offset) * width
    tensor = StoredTensor(storage, dtype, start, sizes, steps)
    if tensor.span and tensor.offset + tensor.span > storage.nbytes:
        return Opaque("a tensor that reaches beyond its storage", tensor_like=True)
    return tensor


def _unsupported(value: object) -> Opaque:
    name = value.name if isinstance(value, (Opaque, Global)) else type(value).__name__
    return Opaque(name, tensor_like=True)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> object:
    storage, offset, shape, strides, *_ = arguments
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> object:
    storage, offset, shape, strides, _grad, _hooks, dtype, *_ = arguments
    known = TORCH_DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    return _tensor(storage, offset, shape, strides, known) if known else _unsupported(dtype)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> object:
    data = arguments[0]
    return data if isinstance(data, StoredTensor) else _unsupported(data)


def _rebuild_from_type(arguments: tuple[Any, ...]) -> object:
    """A tensor with attributes; of a subclass only its author knows what the values mean."""
    function, kind, inner, *_ = arguments
    builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
    plain = isinstance(kind, Global) and kind.name in _PLAIN_CLASSES
    return builder(inner) if builder and plain else _unsupported(kind)


def _mapping(arguments: tuple[Any, ...]) -> object:
    """OrderedDict and its like, from pairs (protocol 0 and 1) or empty."""
    given = arguments[-1] if arguments else ()
    if isinstance(given, dict):
        return dict(given)
    pairs = given if isinstance(given, list) else ()
    return {key: value for key, value in pairs if isinstance(key, (str, int))}


def _reconstruct(arguments: tuple[Any, ...]) -> object:
    """An instance as copyreg makes it under protocols 0 and 1."""
    return Opaque(arguments[0].name if isinstance(arguments[0], Global) else "object")


def _first(arguments: tuple[Any, ...]) -> object:
    return arguments[0] if arguments else ()


_UTILS = "torch._utils."
BUILDERS: Mapping[str, Builder] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "torch.Size": _first,
    "torch.device": _first,
    "copyreg._reconstructor": _reconstruct,
    "copy_reg._reconstructor": _reconstruct,
    f"{_UTILS}_rebuild_tensor": _rebuild_tensor,
    f"{_UTILS}_rebuild_tensor_v2": _rebuild_tensor,
    f"{_UTILS}_rebuild_tensor_v3": _rebuild_tensor_v3,
    f"{_UTILS}_rebuild_parameter": _rebuild_parameter,
    f"{_UTILS}_rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
"""The only calls of a pickle that give anything but an inert stand-in."""


def is_tensor_like(value: object) -> bool:
    """Whether the author of the file had a tensor (or array) here that we cannot take as one."""
    if not isinstance(value, Opaque):
        return False
    name = value.name.lower()
    is_scalar = name.endswith(("multiarray.scalar", "numpy.dtype"))
    return value.tensor_like or (not is_scalar and any(word in name for word in _TENSOR_WORDS))


def is_module(value: object) -> bool:
    """Whether a whole torch.nn.Module was pickled, not its state dict."""
    state = value.state if isinstance(value, Opaque) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
