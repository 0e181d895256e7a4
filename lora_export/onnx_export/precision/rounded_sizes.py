"""What rounding makes of the size of every parameter, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lora_export.onnx_export.file.bindings import element_dtype, read_bindings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from lora_export.onnx_export.precision.read_rounded import Raised


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters by name, with their bytes in float32 and in the file."""

    rounded: Mapping[str, tuple[int, int]]
    """Those that are stored as codes."""
    kept: Mapping[str, tuple[int, int]]
    """The others, bit for bit the merged ones."""


def sizes_of(
    model: onnx.ModelProto, full: onnx.ModelProto, raised: Mapping[str, Raised]
) -> Weights:
    """Sum the bytes of every parameter in float32 and in the file."""
    sizes, before = (
        {tensor.name: _bytes_of(tensor) for tensor in one.graph.initializer}
        for one in (model, full)
    )
    holders: dict[str, set[str]] = {}
    for one in raised.values():
        holders.setdefault(one.use.weight, {one.use.weight}).update(one.parts)
    rounded, kept = {}, {}
    for name, initializer in _owners(full):
        if initializer in holders:
            now = sum(sizes.get(part, 0) for part in holders[initializer])
            rounded[name] = before[initializer], now
        else:
            kept[name] = before[initializer], sizes.get(initializer, 0)
    return Weights(rounded, kept)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    return int(prod(tensor.dims)) * element_dtype(tensor).itemsize


def _owners(full: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """List (first name, initializer) of every bound initializer; tied names share one."""
    seen = set()
    for name, binding in read_bindings(full).parameters.items():
        if binding.initializer not in seen:
            seen.add(binding.initializer)
            yield name, binding.initializer
