"""From byte ranges to torch tensors and back, the only place here that imports torch, and late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import (
    open_for_reading,
    pread_exact,
    pread_into,
    system_errors,
)
from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lora_export.records import TensorRef

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""torch's name of every safetensors dtype with whole bytes an element, as safetensors 0.8 maps."""

CHUNK_BYTES = 4 << 20


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch.dtype of a safetensors dtype name; InputError when torch has none."""
    import torch

    found = getattr(torch, TORCH_NAMES.get(dtype, ""), None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"torch {torch.__version__} cannot hold elements of dtype {dtype}")
    return found


def read_tensor(ref: TensorRef) -> torch.Tensor:
    """The tensor as a new, dense, row-major CPU tensor of the ref's dtype and shape.

    Reproduces the values that torch.load or safetensors give. Raises InputError when the file
    ends before the tensor does, StorageError when it cannot be read.
    """
    import torch

    dtype = torch_dtype(ref.spec.dtype)
    content = torch.empty(ref.length, dtype=torch.uint8)
    _read_into(ref, content.numpy().data)
    flat = content.view(dtype)
    if ref.strides is None:
        return flat.reshape(ref.spec.shape)
    return flat.as_strided(ref.spec.shape, ref.strides).clone(memory_format=torch.contiguous_format)


def _read_into(ref: TensorRef, target: memoryview) -> None:
    with open_for_reading(ref.file) as descriptor:
        _fill(target, descriptor, ref, 0)


def _fill(target: memoryview, descriptor: int, ref: TensorRef, start: int) -> None:
    """Read the tensor's bytes from `start` on into all of `target`."""
    with system_errors(ref.file, "read"):
        if pread_into(descriptor, target, ref.offset + start) < len(target):
            raise _cut_short(ref)


def _cut_short(ref: TensorRef) -> InputError:
    return InputError(
        f"the file ends before the {ref.length:,} bytes of this tensor",
        where=f"{ref.file}: {ref.spec.name!r}",
        hint="copy or download the file again",
    )


def read_bytes(ref: TensorRef) -> bytes:
    """The bytes of the ref's range as they lie in the file, whatever its strides.

    Raises InputError when the file ends before, StorageError when it cannot be read.
    """
    with open_for_reading(ref.file) as descriptor, system_errors(ref.file, "read"):
        content = pread_exact(descriptor, ref.length, ref.offset)
    if len(content) != ref.length:
        raise _cut_short(ref)
    return content


def iter_chunks(ref: TensorRef, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The bytes of a tensor in row-major order, in pieces of at most `size` bytes.

    A piece is only valid until the next one is asked for. A tensor with strides is read and made
    dense first. Raises InputError when the file ends before, StorageError when unreadable.
    """
    if ref.strides is not None:
        whole = tensor_bytes(read_tensor(ref))
        yield from (whole[at : at + size] for at in range(0, len(whole), size))
        return
    room = memoryview(bytearray(min(size, ref.length)))
    done = 0
    with open_for_reading(ref.file) as descriptor:
        while done < ref.length:
            piece = room[: ref.length - done]
            _fill(piece, descriptor, ref, done)
            yield piece
            done += len(piece)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a CPU tensor in row-major order as bytes.

    Without a copy when the tensor is dense row-major; the view keeps the tensor alive. Works for
    scalars, empty tensors and dtypes that numpy lacks (bfloat16, float8).
    """
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one element of a stepped view counts as contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def rounds_to(wide: TensorRef, narrow: TensorRef) -> bool:
    """Whether `wide`, cast to the dtype of `narrow`, of the same shape, has its values."""
    import torch

    return torch.equal(read_tensor(wide).to(torch_dtype(narrow.spec.dtype)), read_tensor(narrow))
