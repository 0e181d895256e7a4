"""Turns byte ranges into torch tensors and back.

Only this module of `checkpoint` imports torch, and only inside its functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import (
    COPY_AGAIN,
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
"""Bytes of a piece when a file or tensor is read piece by piece."""


def torch_dtype(dtype: str) -> torch.dtype:
    """Return the torch.dtype of a safetensors dtype name.

    Raises:
        InputError: the installed torch has no such dtype.
    """
    import torch

    found = getattr(torch, TORCH_NAMES.get(dtype, ""), None)
    if not isinstance(found, torch.dtype):
        raise InputError(
            f"torch {torch.__version__} cannot hold elements of dtype {dtype}", cause="input/dtype"
        )
    return found


def read_tensor(ref: TensorRef) -> torch.Tensor:
    """Read a tensor into a new, dense, row-major CPU tensor of the ref's dtype and shape.

    Reproduces the values that torch.load (torch 2.13) or safetensors 0.8 give.

    Raises:
        InputError: the file ends before the tensor does, or torch lacks the dtype.
        StorageError: the file cannot be read.
    """
    import torch

    dtype = torch_dtype(ref.spec.dtype)
    content = torch.empty(ref.length, dtype=torch.uint8)
    with open_for_reading(ref.file) as descriptor:
        _fill(content.numpy().data, descriptor, ref, 0)
    flat = content.view(dtype)
    if ref.strides is None:
        return flat.reshape(ref.spec.shape)
    return flat.as_strided(ref.spec.shape, ref.strides).clone(memory_format=torch.contiguous_format)


def read_tensor_into(ref: TensorRef, into: torch.Tensor) -> None:
    """Read a dense tensor into the memory of `into`, which has its dtype and number of elements.

    Raises:
        InputError: the file ends before the tensor does.
        StorageError: the file cannot be read.
    """
    with open_for_reading(ref.file) as descriptor:
        _fill(tensor_bytes(into), descriptor, ref, 0)


def _fill(target: memoryview, descriptor: int, ref: TensorRef, start: int) -> None:
    """Fill all of `target` with the tensor's bytes from `start` on."""
    with system_errors(ref.file, "read"):
        if pread_into(descriptor, target, ref.offset + start) < len(target):
            raise _cut_short(ref)


def _cut_short(ref: TensorRef) -> InputError:
    return InputError(
        f"the file ends before the {ref.length:,} bytes of this tensor",
        where=f"{ref.file}: {ref.spec.name!r}",
        hint=COPY_AGAIN,
        cause="input/truncated",
    )


def read_bytes(ref: TensorRef) -> bytes:
    """Read the bytes of the ref's range as they lie in the file, whatever its strides.

    Raises:
        InputError: the file ends before the range does.
        StorageError: the file cannot be read.
    """
    with open_for_reading(ref.file) as descriptor, system_errors(ref.file, "read"):
        content = pread_exact(descriptor, ref.length, ref.offset)
    if len(content) != ref.length:
        raise _cut_short(ref)
    return content


def iter_chunks(ref: TensorRef, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in row-major order, in pieces of at most `size` bytes.

    The next piece overwrites the one before. A tensor with strides is read and made dense first.

    Raises:
        InputError: the file ends before the tensor does.
        StorageError: the file cannot be read.
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
    """Return the elements of a CPU tensor in row-major order as bytes.

    A dense row-major tensor is not copied; the view keeps it alive. Scalars, empty tensors and
    dtypes that NumPy lacks (bfloat16, float8) work as well.
    """
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one element of a stepped view counts as contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def rounds_to(wide: TensorRef, narrow: TensorRef) -> bool:
    """Return whether `wide`, cast to the dtype of `narrow`, equals it. Both have one shape.

    The cast is torch's `Tensor.to`, which rounds to nearest, ties to even.
    """
    import torch

    return torch.equal(read_tensor(wide).to(torch_dtype(narrow.spec.dtype)), read_tensor(narrow))
