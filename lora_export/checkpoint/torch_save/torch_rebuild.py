"""Rebuilds the tensors and containers of a torch pickle, as plain descriptions.

Reproduces torch._utils._rebuild_tensor (v1 to v3), _rebuild_parameter (_with_state) and
torch._tensor._rebuild_from_type_v2 of torch 2.13 as far as the layout of dense tensors goes.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.torch_save.inert import Built, Global, Opaque, PickleError, mapping_key
from lora_export.checkpoint.torch_save.torch_values import (
    MAX_SIZE,
    SAVE_AGAIN,
    Storage,
    StoredTensor,
    plain_size,
)
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.checkpoint.torch_save.machine import Builder

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

_MAX_DIMENSIONS = 64
_BITS = {"neg": ("negative", "resolve_neg"), "conj": ("conjugate", "resolve_conj")}
VALUE_ATTRIBUTES = frozenset({"data", "real", "imag"})
"""Attributes of a tensor that replace its values when they are set."""

_PLAIN_CLASSES = frozenset(
    {
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.Parameter",
        "torch.nn.parameter.Buffer",
    }
)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError("sizes that are no tuple")
    return tuple(plain_size(item) for item in value)


def _tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: str = ""
) -> object:
    if not isinstance(storage, Storage):
        return _unsupported(storage)
    dtype = dtype or storage.dtype
    if dtype not in DTYPE_BITS:
        return Opaque(dtype, tensor_like=True)
    sizes, steps = _sizes(shape), _sizes(strides)
    longest = prod(max(size, 1) for size in sizes)
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS or longest > MAX_SIZE:
        raise ValueError("sizes and strides that do not fit each other")
    width = DTYPE_BITS[dtype] // 8
    start = storage.start * storage.width + plain_size(offset) * width
    tensor = StoredTensor(storage, dtype, start, sizes, steps)
    if tensor.span and tensor.offset + tensor.span > storage.nbytes:
        return Opaque("a tensor that reaches beyond its storage", tensor_like=True)
    return tensor


def _unsupported(value: object) -> Opaque:
    name = value.name if isinstance(value, (Opaque, Global)) else type(value).__name__
    return Opaque(name, tensor_like=True)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> object:
    storage, offset, shape, strides = arguments
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(arguments: tuple[Any, ...]) -> object:
    storage, offset, shape, strides, requires_grad, _hooks, *rest = arguments
    _flag(requires_grad)
    return _with_bits(_tensor(storage, offset, shape, strides), *rest)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> object:
    storage, offset, shape, strides, requires_grad, _hooks, dtype, *rest = arguments
    _flag(requires_grad)
    known = TORCH_DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if not known:
        return _unsupported(dtype)
    return _with_bits(_tensor(storage, offset, shape, strides, known), *rest)


def _flag(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError("a requires_grad that is no bool")


def _with_bits(tensor: object, metadata: object = None) -> object:
    """The tensor, if its metadata sets no bit; torch sets one for its key, whatever the value."""
    if metadata is None:
        return tensor
    if not isinstance(metadata, dict):
        raise TypeError("a tensor's metadata that is no mapping")
    for key, (word, method) in _BITS.items():
        if key in metadata:
            name = f"a tensor whose {word} bit is set"
            return Opaque(name, tensor_like=True, hint=f"save tensor.{method}() instead")
    return tensor


def _rebuild_parameter(arguments: tuple[Any, ...]) -> object:
    data, requires_grad, _hooks = arguments
    _flag(requires_grad)
    return data if _is_tensor(data) else _unsupported(data)


def _rebuild_parameter_with_state(arguments: tuple[Any, ...]) -> object:
    *plain, state = arguments
    _check_state(state)
    return _rebuild_parameter(tuple(plain))


def _is_tensor(value: object) -> bool:
    return isinstance(value, StoredTensor) or (isinstance(value, Opaque) and value.tensor_like)


def _check_state(state: object) -> None:
    """Attributes that torch sets on a tensor; some of them would replace its values."""
    for part in state if isinstance(state, tuple) else (state,):
        if not isinstance(part, (dict, type(None))):
            raise TypeError("a tensor's attributes that are no mapping")
        if values := VALUE_ATTRIBUTES & (part or {}).keys():
            raise PickleError(
                f"it sets {min(map(str, values))!r} of a tensor, which replaces its values",
                SAVE_AGAIN,
            )


def _rebuild_from_type(arguments: tuple[Any, ...]) -> object:
    """A tensor with attributes; of a subclass only its author knows what the values mean."""
    function, kind, inner, state = arguments
    builder = _INNER.get(function.name) if isinstance(function, Global) else None
    if builder is None:
        return _unsupported(function)
    plain = isinstance(kind, Global) and kind.name in _PLAIN_CLASSES
    if not plain:
        return _unsupported(kind)
    _check_state(state)
    return builder(inner)


def _mapping(arguments: tuple[Any, ...]) -> object:
    """OrderedDict and dict, from pairs (protocol 0 and 1), from a mapping, or empty."""
    (given,) = arguments or ((),)
    if isinstance(given, dict):
        return Built(given)
    if not isinstance(given, (list, tuple)):
        raise TypeError("a mapping of what is no pairs")
    return Built((mapping_key(key), value) for key, value in given)


def _default_mapping(arguments: tuple[Any, ...]) -> object:
    return _mapping(arguments[1:])


def _counter(arguments: tuple[Any, ...]) -> object:
    if arguments and not isinstance(arguments[0], dict):
        raise TypeError("a Counter of what is no mapping")
    return _mapping(arguments)


def _first(arguments: tuple[Any, ...]) -> object:
    return arguments[0] if arguments else ()


_UTILS = "torch._utils."
_INNER: Mapping[str, Builder] = {
    f"{_UTILS}_rebuild_tensor": _rebuild_tensor,
    f"{_UTILS}_rebuild_tensor_v2": _rebuild_tensor_v2,
    f"{_UTILS}_rebuild_tensor_v3": _rebuild_tensor_v3,
    f"{_UTILS}_rebuild_parameter": _rebuild_parameter,
    f"{_UTILS}_rebuild_parameter_with_state": _rebuild_parameter_with_state,
}
BUILDERS: Mapping[str, Builder] = {
    **_INNER,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _default_mapping,
    "collections.Counter": _counter,
    "builtins.dict": _mapping,
    "torch.Size": _first,
    "torch.device": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
"""The only calls of a pickle that give anything but an inert stand-in."""
