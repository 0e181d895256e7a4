"""Rebuilds the tensors and containers of a torch pickle, as plain descriptions.

Reproduces torch._utils._rebuild_tensor (v1 to v3), _rebuild_parameter (_with_state) and
torch._tensor._rebuild_from_type_v2 of torch 2.13 as far as the layout of dense tensors goes.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.header import MAX_SIZE
from lora_export.checkpoint.tensors import TORCH_NAMES
from lora_export.checkpoint.torch_save.inert import (
    SAVE_AGAIN,
    Built,
    Global,
    Opaque,
    PickleError,
    mapping_key,
)
from lora_export.checkpoint.torch_save.torch_values import Storage, StoredTensor, plain_size
from lora_export.records import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.checkpoint.torch_save.machine import Builder

_DTYPES = {f"torch.{torch_name}": dtype for dtype, torch_name in TORCH_NAMES.items()}
"""safetensors' name of a dtype by the name that a pickle gives it."""

_MAX_DIMENSIONS = 64
"""The most dimensions that torch's operations take (at::dim_bitset_size)."""

_BITS = {"neg": ("negative", "resolve_neg"), "conj": ("conjugate", "resolve_conj")}
"""The keys of a tensor's metadata, each with the bit's name and the method that applies it."""

_DEVICE = re.compile(
    "(?:cpu|cuda|fpga|hip|hpu|ideep|ipu|lazy|maia|meta|mkldnn|mps|mtia|opencl|opengl|privateuseone|"
    "ve|vulkan|xla|xpu)(?::[0-9]{1,3})?"
)
"""The devices that torch 2.13 knows (torch.device)."""

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
        raise TypeError("the sizes of a tensor are no tuple")
    if len(value) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of more than {_MAX_DIMENSIONS} dimensions")
    return tuple(plain_size(item) for item in value)


def _tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: str = ""
) -> object:
    """Return the StoredTensor that a rebuilder describes, or a stand-in where it cannot be read.

    `offset` and `strides` count elements of `dtype`, which is the storage's when empty.
    """
    if not isinstance(storage, Storage):
        return _unsupported(storage)
    dtype = dtype or storage.dtype
    if dtype not in DTYPE_BITS:
        return Opaque(dtype, tensor_like=True)
    sizes, steps = _sizes(shape), _sizes(strides)
    longest = prod(max(size, 1) for size in sizes)
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS or longest > MAX_SIZE:
        raise ValueError("the sizes and strides of a tensor do not fit each other")
    # The storage's start counts its own elements; v3 may view a storage as another dtype.
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
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if not known:
        return _unsupported(dtype)
    return _with_bits(_tensor(storage, offset, shape, strides, known), *rest)


def _flag(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError("requires_grad of a tensor is no bool")


def _with_bits(tensor: object, metadata: object = None) -> object:
    """Return the tensor, or a stand-in where its metadata sets the negative or conjugate bit.

    torch sets a bit when the key is there, whatever the value.
    """
    if metadata is None:
        return tensor
    if not isinstance(metadata, dict):
        raise TypeError("the metadata of a tensor is no mapping")
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
    """Refuse attributes of a tensor that would replace its values; torch sets any of them."""
    for part in state if isinstance(state, tuple) else (state,):  # (__dict__, __slots__)
        if not isinstance(part, (dict, type(None))):
            raise TypeError("the attributes of a tensor are no mapping")
        if values := VALUE_ATTRIBUTES & (part or {}).keys():
            raise PickleError(
                f"it sets {min(map(str, values))!r} of a tensor, which replaces its values",
                SAVE_AGAIN,
            )


def _rebuild_from_type(arguments: tuple[Any, ...]) -> object:
    """Return a tensor with attributes, or a stand-in for a subclass.

    Only the author of a subclass knows what its values mean.
    """
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
    """Return an OrderedDict or dict, from pairs (protocols 0 and 1), from a mapping, or empty."""
    (given,) = arguments or ((),)
    if isinstance(given, dict):
        return Built(given)
    if not isinstance(given, (list, tuple)):
        raise TypeError("a mapping that is not made from pairs")
    return Built((mapping_key(key), value) for key, value in given)


def _default_mapping(arguments: tuple[Any, ...]) -> object:
    return _mapping(arguments[1:])  # the first argument is the factory of missing values


def _counter(arguments: tuple[Any, ...]) -> object:
    # Of anything but a mapping, Counter counts the items, and the values would not be the file's.
    if arguments and not isinstance(arguments[0], dict):
        raise TypeError("a Counter that is not made from a mapping")
    return _mapping(arguments)


def _size(arguments: tuple[Any, ...]) -> object:
    return _sizes(*arguments) if arguments else ()


def _device(arguments: tuple[Any, ...]) -> object:
    """Return the text of a device; torch makes no device of anything else."""
    kind, *index = arguments
    if not isinstance(kind, str) or not _DEVICE.fullmatch(kind) or len(index) > 1:
        raise TypeError("no device of torch")
    return f"{kind}:{plain_size(index[0])}" if index else kind


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
    "torch.Size": _size,
    "torch.device": _device,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
"""The only calls of a pickle that give anything but an inert stand-in."""
