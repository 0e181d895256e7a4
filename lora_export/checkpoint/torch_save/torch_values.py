"""What a torch pickle holds, as plain descriptions: storages, the tensors in them, their places."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.torch_save.inert import Global, Opaque, PickleError
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.checkpoint.torch_save.callables import Named
    from lora_export.records import Problem

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}  # fmt: skip
"""dtype by the last component of the storage class; its module is torch, torch.cuda or .storage."""

UNSUPPORTED_STORAGE_BYTES = {
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes an element of storages that no tensor of ours can lie in, to find what follows them."""

SAVE_AGAIN = "load the checkpoint where it was made and torch.save its state dict again"
MAX_SIZE = 2**63 - 1
_TENSOR_WORDS = ("tensor", "parameter", "ndarray", "numpy")


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
    """What torch.save was given, inert, the places of its storages by key, and what it names."""

    root: object
    places: Mapping[str, Place]
    named: Named


@dataclass(frozen=True, slots=True)
class StorageTable:
    """The storages that a pickle names, by key."""

    by_key: dict[str, Storage] = field(default_factory=dict)

    def add(self, identifier: object) -> object:
        """The storage of a persistent id, remembered."""
        value = make_storage(identifier)
        if isinstance(value, Storage):
            known = self.by_key.setdefault(value.key, value)
            if (known.dtype, known.numel) != (value.dtype, value.numel):
                raise PickleError(
                    f"its storage {value.key[:40]!r} is named as {known.numel} x {known.dtype} "
                    f"and as {value.numel} x {value.dtype}; readers differ about it",
                    SAVE_AGAIN,
                )
        return value


def make_storage(identifier: object) -> object:
    """The storage that a persistent id of torch.save names, or the class of a "module" id."""
    kind, *facts = identifier if isinstance(identifier, tuple) else (None,)
    if kind == "module" and facts:
        return facts[0]
    if kind != "storage":
        raise ValueError("a persistent id that is not torch's")
    storage_type, key, _location, numel, *rest = facts
    name = storage_type.name if isinstance(storage_type, Global) else ""
    last = name.rpartition(".")[2] if name.startswith("torch.") else "?"
    dtype = STORAGE_DTYPES.get(last, f"torch.{last}")
    width = UNSUPPORTED_STORAGE_BYTES.get(last) or DTYPE_BITS.get(dtype, 0) // 8
    if not width:
        return Opaque(dtype, tensor_like=True)
    base = Storage(_text(key), dtype, width, plain_size(numel))
    return _view(base, rest[0]) if rest and rest[0] is not None else base


def _view(base: Storage, view: tuple[object, int, int]) -> Storage:
    """Files of torch < 0.4 store views of storages: (key, offset, size)."""
    _key, offset, size = view
    if plain_size(offset) + plain_size(size) > base.numel:
        raise ValueError("a view beyond the end of its storage")
    return replace(base, start=offset)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a storage key that is no string")
    return value


def plain_size(value: object) -> int:
    """A size or offset of a pickle; ValueError for anything but an int from 0 to MAX_SIZE."""
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ValueError("a size that is no positive integer")
    return value


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
