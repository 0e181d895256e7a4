"""Builders of safetensors files, whole or with any header."""

from __future__ import annotations

import json
import random
import struct


def numbers(count: int, seed: int) -> bytes:
    """Return float32 values of both signs that are the same in every run."""
    draw = random.Random(seed)
    values = (draw.choice((-1, -0.5, 0.25, 1)) * draw.randint(1, 7) / 4 for _ in range(count))
    return struct.pack(f"<{count}f", *values)


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header; `length` is what it claims."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: object = None) -> bytes:
    """Return a right file of tensors: name -> (dtype, shape, bytes)."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(entries, separators=(",", ":")).encode()
    return with_header(text + b" " * (-len(text) % 8), data)


WEIGHT, BIAS, NORM = numbers(48, 1), numbers(8, 2), numbers(6, 3)
"""The values of the base: `fc.weight` of 8 x 6, `fc.bias` of 8, `norm.weight` of 6."""

BASE = {
    "fc.weight": ("F32", [8, 6], WEIGHT),
    "fc.bias": ("F32", [8], BIAS),
    "norm.weight": ("F32", [6], NORM),
}
LORA = {
    "fc.lora_A": ("F32", [2, 6], numbers(12, 4)),
    "fc.lora_B": ("F32", [8, 2], numbers(16, 5)),
}
