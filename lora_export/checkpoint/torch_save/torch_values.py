"""Plain descriptions of what a torch pickle holds: storages, tensors in them, their places."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.header import MAX_SIZE
from lora_export.checkpoint.torch_save.inert import SAVE_AGAIN, Global, Opaque, PickleError
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
"""dtype by the last component of a storage's class, of torch, torch.cuda or torch.storage."""

UNSUPPORTED_STORAGE_BYTES = {
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes an element of storages whose tensors are not read; what follows them must be found."""

_TENSOR_WORDS = ("tensor", "parameter", "ndarray", "numpy")
"""Words in the name of a class whose objects hold values like a tensor's."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes of the file that holds elements of one dtype."""

    key: str
    """The name of the storage in the file."""
    dtype: str
    """safetensors' name of the dtype, or the storage's class where safetensors has none."""
    width: int
    """Bytes of one element."""
    numel: int
    """Number of elements."""
    start: int = 0
    """The element from which the offsets of this storage's tensors count."""

    @property
    def nbytes(self) -> int:
        """Return the size of the whole run in bytes."""
        return self.numel * self.width


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A dense tensor inside a storage."""

    storage: Storage
    dtype: str
    offset: int
    """Where the tensor begins in the storage, in bytes."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Steps between neighbours of each dimension, in elements of `dtype`."""

    @property
    def span(self) -> int:
        """Return the number of bytes from the first to the last element, both included."""
        if 0 in self.shape:
            return 0
        axes = zip(self.shape, self.strides, strict=True)
        reach = sum((size - 1) * stride for size, stride in axes)
        return (reach + 1) * DTYPE_BITS[self.dtype] // 8

    @property
    def layout(self) -> tuple[int, ...] | None:
        """Return the strides, or None when the tensor is row-major without gaps.

        The strides of dimensions of size 1, and of a tensor without elements, do not matter.
        """
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
    """Where the bytes of a storage lie in the file."""

    offset: int
    nbytes: int
    fault: Problem | None = None
    """Why the storage could not be found; offset and nbytes are then 0."""


@dataclass(frozen=True, slots=True)
class TorchObject:
    """What torch.save was given, inert."""

    root: object
    places: Mapping[str, Place]
    """Where each storage lies, by key."""
    named: Named
    """The classes and functions that the pickle names to call."""


@dataclass(frozen=True, slots=True)
class StorageTable:
    """The storages that a pickle names, by key."""

    facts: int
    """How many facts a persistent id gives: 5 in the zip format, 6 with the view before it."""
    by_key: dict[str, Storage] = field(default_factory=dict)

    def add(self, identifier: object) -> object:
        """Return the storage of a persistent id and remember it.

        Raises:
            ValueError: the id has more or fewer facts.
            PickleError: another dtype or number of elements was given for the same key before.
        """
        is_storage = isinstance(identifier, tuple) and identifier[:1] == ("storage",)
        if is_storage and len(identifier) != self.facts:  # type: ignore[arg-type]
            raise ValueError("a persistent id that is not of this format")
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
    """Return the storage that a persistent id of torch.save names, or the class of a "module" id.

    The id is ("storage", class, key, location, number of elements), then a view in old files. A
    storage of an unknown class becomes an Opaque.

    Raises:
        ValueError, TypeError: the id is not torch's.
    """
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
    """Return the storage from a view's start on; torch before 0.4 writes (key, offset, size)."""
    _key, offset, size = view
    if plain_size(offset) + plain_size(size) > base.numel:
        raise ValueError("a view reaches beyond the end of its storage")
    return replace(base, start=offset)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("the key of a storage is no string")
    return value


def plain_size(value: object) -> int:
    """Return a size or offset of a pickle.

    Raises:
        ValueError: it is no int from 0 to MAX_SIZE.
    """
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ValueError("a size is no integer from 0 to 2**63 - 1")
    return value


def is_tensor_like(value: object) -> bool:
    """Return whether a value stands for a tensor or array that cannot be read as one."""
    if not isinstance(value, Opaque):
        return False
    name = value.name.lower()
    is_scalar = name.endswith(("multiarray.scalar", "numpy.dtype"))
    return value.tensor_like or (not is_scalar and any(word in name for word in _TENSOR_WORDS))


def is_module(value: object) -> bool:
    """Return whether a whole torch.nn.Module was pickled, not its state dict."""
    state = value.state if isinstance(value, Opaque) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
