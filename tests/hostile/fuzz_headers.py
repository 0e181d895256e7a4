"""Mutated safetensors headers, each read by us and by the safetensors library."""

from __future__ import annotations

import random
import re
import struct
from typing import TYPE_CHECKING

from hostile.fuzzed import Fuzzed
from hostile.tensors_file import BASE, safetensors
from safetensors import SafetensorError, safe_open

from lora_export.checkpoint.header import read_header
from lora_export.errors import LoraExportError

if TYPE_CHECKING:
    from pathlib import Path

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|[\[\]{},:]|\s+|\w+')
_OTHERS = (
    "-0", "0", "-1", "1", "6", "8", "192", "224", "248", "1e0", "6.0", "6e0", "0.0", "-0.0",
    "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "true", "null", "NaN", "Infinity", '"F32"', '"F16"', '"BF16"', '"F4"', '"F6_E2M3"', '"F8_E8M0"',
    '"C64"', '"U8"', '"BOOL"', '"I64"', "[]", "{}", "[0]", "[0,0]", "[-0]", "[1,6]", "[6,1]",
    "[2,3]", "[6,0]", '"x"', '""', '"a.b"', '"\\u0061"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\/"',
    '"\\u0000"', " ", "\t", "\n", "\r", "\x0b", "\xa0", ",", ":", "{", "}", "[", "]",
    '"__metadata__"', '"dtype"', '"shape"', '"data_offsets"', '"\x7f"', '"\xe9"', '"\u2028"',
    "//x\n", "/**/", "+1", "01", "1.", "0x1", "1_0", "\u0660",
)  # fmt: skip
_SEEDS = (
    safetensors(BASE),
    safetensors(BASE, {"format": "pt"}),
    safetensors({"a": ("F32", [0, 3], b""), **BASE}),
    safetensors({"a": ("F32", [], bytes(4)), "b": ("U8", [3], b"abc"), "z": ("F32", [0], b"")}),
    safetensors({"b": ("F4", [4], b"\1\2"), "c": ("BF16", [1, 1, 1], bytes(2))}),
    safetensors({"": ("U8", [1], b"a")}),
)


def mutated(draw: random.Random) -> bytes:
    """Return a right file with one to three tokens of its header changed, or its ends."""
    content = draw.choice(_SEEDS)
    length = struct.unpack("<Q", content[:8])[0]
    tokens = _TOKEN.findall(content[8 : 8 + length].decode())
    data = content[8 + length :]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        _mutate(tokens, draw)
    header = "".join(tokens).encode("utf-8", "surrogatepass")
    if draw.random() < 0.7:
        header += b" " * (-len(header) % 8)
    if draw.random() < 0.05 and header:
        at = draw.randrange(len(header))
        header = header[:at] + bytes([header[at] ^ 1 << draw.randrange(8)]) + header[at + 1 :]
    data = {0: data[:-1], 1: data + b"\0"}.get(draw.randrange(20), data)
    claim = len(header) + (draw.choice((-1, 1, 8)) if draw.random() < 0.03 else 0)
    return struct.pack("<Q", max(claim, 0)) + header + data


def _mutate(tokens: list[str], draw: random.Random) -> None:
    if not tokens:
        return
    at, way = draw.randrange(len(tokens)), draw.randrange(8)
    if way < 3:
        tokens[at] = draw.choice(_OTHERS)
    elif way == 3:
        tokens.insert(at, draw.choice(_OTHERS))
    elif way == 4:
        del tokens[at]
    elif way == 5:
        tokens.insert(at, draw.choice(" \t\n\r"))
    else:
        other = draw.randrange(len(tokens))
        tokens[at], tokens[other] = tokens[other], tokens[at]


def run(seed: int, count: int, folder: Path) -> Fuzzed:
    """Try `count` files: what we read, the library reads, with the same tensors and metadata."""
    draw, found = random.Random(seed), Fuzzed()
    file = folder / "x.safetensors"
    for _ in range(count):
        content = mutated(draw)
        file.write_bytes(content)
        with found.example(content):
            try:
                metadata, refs = read_header(file)
            except LoraExportError:
                continue
            found.accepted += 1
            ours = {ref.spec.name: (ref.spec.dtype, list(ref.spec.shape)) for ref in refs}
            found.check(_by_library(file) == (ours, metadata), "the library reads it otherwise")
    return found


def _by_library(file: Path) -> object:
    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            tensors = {n: (one.get_dtype(), list(one.get_shape())) for n, one in slices.items()}
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        return str(error)
