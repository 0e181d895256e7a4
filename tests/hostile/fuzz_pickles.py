"""Mutated files of torch.save, each read by us and by torch.load(weights_only=True)."""

from __future__ import annotations

import pickletools
import random
import struct
from typing import TYPE_CHECKING

import torch
from hostile.fuzzed import Fuzzed, Wrong
from hostile.pickle_file import (
    GOOD,
    archive,
    call,
    mapping,
    name,
    number,
    pickled,
    row,
    state_dict,
    storage,
    tensor,
    text,
)

from lora_export.checkpoint.tensors import read_tensor
from lora_export.checkpoint.torch_save.containers import key_text
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.checkpoint.torch_save.torch_zip import check_sums
from lora_export.errors import LoraExportError

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.checkpoint.torch_save.pickles import TorchFile

_STEPS = row(number(6), number(1))
_SIZES = row(number(8), number(6))
_PARTS = (
    b"N",
    b"\x88",
    b"\x89",
    b"0",
    b"2",
    b"(",
    b")",
    b"]",
    b"}",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"R",
    b"b",
    b"s",
    b"u",
    b"a",
    b"e",
    b"Q",
    b"\x81",
    b"q\0",
    b"h\0",
    b"q\1",
    b"h\1",
    *map(number, (0, 1, 6, 8, 48, 2**63, -1)),
    *map(text, ("x.weight", "fc.weight", "0", "1", "neg")),
    text("state_dict"),
    b"G" + struct.pack(">d", 1.5),
    name("collections", "OrderedDict"),
    name("torch._utils", "_rebuild_tensor_v2"),
    name("torch._utils", "_rebuild_parameter"),
    name("torch._tensor", "_rebuild_from_type_v2"),
    name("torch", "Tensor"),
    name("torch", "FloatStorage"),
    name("torch", "HalfStorage"),
    name("torch", "Size"),
    name("torch", "float16"),
    name("torch.nn.parameter", "Parameter"),
    name("collections", "Counter"),
    name("torch", "device"),
    text("cpu"),
    storage(0, 48),
    storage(1, 8),
    storage(0, 96, "HalfStorage"),
    storage(0, 192, "ByteStorage"),
    tensor(storage(1, 8), (8,), (1,)),
    tensor(storage(0, 48), (6, 8), (1, 6)),
    call(name("collections", "OrderedDict")),
)
_V2 = name("torch._utils", "_rebuild_tensor_v2")
_REST = [(text(key), value) for key, value in GOOD[1:]]
_WHOLE = [(text(key), value) for key, value in GOOD]
_ORDERED = call(name("collections", "OrderedDict"))
_SEEDS = (
    state_dict(GOOD),
    state_dict([*GOOD, ("x", number(5)), ("y", text("t"))]),
    pickled(mapping([(text("state_dict"), mapping(_WHOLE)), (text("epoch"), number(3))])),
    pickled(
        _ORDERED
        + b"("
        + b"".join(k + v for k, v in _WHOLE)
        + b"u"
        + mapping([(text("_metadata"), _ORDERED)])
        + b"b"
    ),
    pickled(
        mapping(
            [
                (
                    text("fc.weight"),
                    call(name("torch._utils", "_rebuild_parameter"), GOOD[0][1], b"\x88", _ORDERED),
                ),
                *_REST,
            ]
        )
    ),
    pickled(
        mapping(
            [
                (
                    text("fc.weight"),
                    call(
                        name("torch._tensor", "_rebuild_from_type_v2"),
                        _V2,
                        name("torch", "Tensor"),
                        row(storage(0, 48), number(0), _SIZES, _STEPS, b"\x89", b"}"),
                        b"}",
                    ),
                ),
                *_REST,
            ]
        )
    ),
)


def _mutated_pickle(draw: random.Random) -> bytes:
    content = draw.choice(_SEEDS)
    starts = [place for _, _, place in pickletools.genops(content)]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3))):
        at, other = (draw.randrange(1, max(len(parts) - 1, 2)) for _ in range(2))
        way = draw.randrange(8)
        if way < 2:
            parts[at] = draw.choice(_PARTS)
        elif way < 4:
            parts.insert(at, draw.choice(_PARTS))
        elif way == 7:
            parts.insert(at, b"q\x77")  # remembered and not used
        elif way == 4 and len(parts) > 3:
            del parts[at]
        elif way == 5 and other < len(parts):
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[other:other] = parts[min(at, other) : max(at, other)][:12]
    return b"".join(parts)


def mutated(draw: random.Random) -> bytes:
    """Return an archive with a mutated pickle, sometimes with a byte of the archive changed."""
    content = bytearray(archive(_mutated_pickle(draw)))
    if draw.random() < 0.15:
        for _ in range(draw.choice((1, 1, 2))):
            directory = bytes(content).find(b"PK\1\2") + draw.randrange(46)
            at = draw.choice((draw.randrange(len(content)), directory))
            content[at] = draw.randrange(256)
    return bytes(content)


def run(seed: int, count: int, folder: Path) -> Fuzzed:
    """Try `count` files: what we read has the tensors that torch reads, to the bit."""
    draw, found = random.Random(seed), Fuzzed()
    file = folder / "x.pt"
    for _ in range(count):
        content = mutated(draw)
        file.write_bytes(content)
        with found.example(content):
            try:
                stored = read_pickles(file)
                check_sums(file)
                ours = {ref.spec.name: read_tensor(ref) for ref in stored.tensors}
            except LoraExportError:
                continue
            found.accepted += 1
            _compare(file, stored, ours, found)
    return found


def _compare(file: Path, stored: TorchFile, ours: dict[str, torch.Tensor], found: Fuzzed) -> None:
    try:
        inner = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error)
        # torch's safe reader knows fewer opcodes, and refuses the objects that we leave closed.
        if "WeightsUnpickler error" not in reason and not stored.notes:
            raise Wrong(f"torch refuses it: {reason[:150]}") from error
        found.refused(reason.rpartition("WeightsUnpickler error:")[2].strip())
        return
    for key in filter(None, stored.wrapper.split(".")):
        inner = next(value for known, value in inner.items() if key_text(known) == key)
    theirs = {key: value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    found.check(theirs.keys() == ours.keys(), "torch reads other tensors")
    for key, value in theirs.items():
        found.check(_same(value.detach(), ours[key]), f"torch reads another {key}")


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    raw = [one.contiguous().reshape(-1).view(torch.uint8) for one in (left, right)]
    return torch.equal(*raw)
