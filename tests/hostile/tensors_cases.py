"""Malformed safetensors files, each given as the base of a merge."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from hostile.case import RIGHT, Case
from hostile.tensors_file import BASE, BIAS, LORA, NORM, WEIGHT, numbers, safetensors, with_header

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP = "safetensors"
DATA = WEIGHT + BIAS + NORM
FC = '"fc.weight":{"dtype":"F32","shape":[8,6],"data_offsets":[0,192]}'
B = '"fc.bias":{"dtype":"F32","shape":[8],"data_offsets":[192,224]}'
N = '"norm.weight":{"dtype":"F32","shape":[6],"data_offsets":[224,248]}'
WHOLE = f"{{{FC},{B},{N}}}"
GOOD = safetensors(BASE)


def merging(content: bytes) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares a merge of a right adapter into a base of these bytes."""

    def prepare(folder: Path) -> Callable[[], object]:
        base, adapter = folder / "base.safetensors", folder / "lora.safetensors"
        base.write_bytes(content)
        adapter.write_bytes(safetensors(LORA))
        return lambda: (
            lora_export.merge(base, [adapter], folder / "out.safetensors", alpha=4, jobs=1).output
        )

    return prepare


def file(text: str | bytes, data: bytes = DATA) -> bytes:
    header = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return with_header(header + b" " * (-len(header) % 8), data)


def entries(*parts: str, data: bytes = DATA) -> bytes:
    return file(f"{{{','.join(parts)}}}", data)


def norm(old: str, new: str) -> bytes:
    """Return the base with a part of its last entry replaced."""
    assert old in N
    return entries(FC, B, N.replace(old, new))


def _lengths() -> Iterator[tuple[str, bytes]]:
    """Wrong lengths of the header, and files that are cut anywhere."""
    length = struct.unpack("<Q", GOOD[:8])[0]
    claims = {
        "0": 0, "1": 1, "7": 7, "one more": length + 1, "one less": length - 1,
        "8 less": length - 8, "40 less": length - 40, "twice": 2 * length, "the file": len(GOOD),
        "100 MB": 100_000_000, "more than 100 MB": 100_000_001, "2**31": 2**31, "2**63": 2**63,
        "2**64 - 1": 2**64 - 1,
    }  # fmt: skip
    for name, claim in claims.items():
        yield f"length {name}", struct.pack("<Q", claim) + GOOD[8:]
    yield "length big-endian", struct.pack(">Q", length) + GOOD[8:]
    cuts = [0, 1, 4, 7, 8, 9, 10, 20, 60, 8 + length, len(GOOD) - 192, len(GOOD) - 4, len(GOOD) - 1]
    for cut in cuts:
        yield f"cut at {cut}", GOOD[:cut]
    for more in (1, 8, 4096, 1_000_000):
        yield f"{more} bytes more", GOOD + b"\0" * more


def _texts() -> Iterator[tuple[str, bytes]]:
    """Headers that are no JSON, or no JSON of this format."""
    texts = {
        "an empty object": "{}", "an array": "[]", "a text": '"x"', "null": "null", "a number": "5",
        "a space before": f" {WHOLE}", "a byte order mark": f"\ufeff{WHOLE}",
        "a comma at the end": f"{WHOLE[:-1]},}}", "a comma at the start": f"{{,{WHOLE[1:]}",
        "not closed": WHOLE[:-1], "closed twice": f"{WHOLE}}}", "junk behind": f"{WHOLE}x",
        "NUL behind": f"{WHOLE}\0", "two objects": f"{WHOLE}{{}}",
        "single quotes": WHOLE.replace('"', "'"), "a comment": f"{{/**/{WHOLE[1:]}",
        "a line comment": f"{{//x\n{WHOLE[1:]}",
        "a control character": WHOLE.replace("no", "n\x01"),
        "a raw line break": WHOLE.replace("no", "n\n"), "a raw tab": WHOLE.replace("no", "n\t"),
        "a bad escape": WHOLE.replace("no", "n\\x"), "half an escape": WHOLE.replace("no", "\\u00"),
        "deep lists": f'{{"__metadata__":{"[" * 100_000}{"]" * 100_000},{WHOLE[1:]}',
        "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000, "no quotes": WHOLE.replace('"', ""),
    }  # fmt: skip
    for name, text in texts.items():
        yield name, file(text)
    yield "UTF-16", file(WHOLE.encode("utf-16-le"))
    yield "Latin-1", file(WHOLE.replace("norm", "n\xf6rm").encode("latin-1"))
    yield "overlong UTF-8", file(WHOLE.encode().replace(b"norm", b"n\xc0\xafrm"))
    yield "half a character", file(WHOLE.encode().replace(b"norm", b"n\xed\xa0\x80rm"))
    others = {
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "HTML": b"<html>" + b" " * 100, "GGUF": b"GGUF\3\0\0\0" + b"\0" * 64,
        "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "gzip": b"\x1f\x8b\x08" + b"\0" * 64,
        "zeros": b"\0" * 400, "ones": b"\xff" * 400, "a text": b"hello\n" * 40,
    }  # fmt: skip
    yield from others.items()


def _tokens() -> Iterator[tuple[str, bytes]]:
    """The right header less each of its tokens, with each twice, and with each a bad one."""
    tokens = re.findall(r'"[^"]*"|\d+|[^"\d]', WHOLE)
    for place, token in enumerate(tokens):
        before, after = "".join(tokens[:place]), "".join(tokens[place + 1 :])
        yield f"without token {place} {token}", file(before + after)
        yield f"token {place} {token} twice", file(before + token + " " + token + after)


_DTYPES = (
    "F33",
    "f32",
    "",
    "F4 ",
    "F" * 100_000,
    "F64",
    "F16",
    "C64",
    "U8",
    "I64",
    "F4",
    "BOOL",
    "F8",
)
_SHAPES = (
    "[-6]", "[-0]", "[-0,6]", "[6.0]", "[6e0]", '["6"]', "[true,6]", "null", "{}", "[[6]]", "[7]",
    "[5]", "[4611686018427387904,4]", "[9223372036854775808]", "[18446744073709551616,6]", "[06]",
    "[4294967296,4294967296,4294967296,0]", "[]", "[0]", "[6,0]", "6", '"6"', "[NaN]", "[Infinity]",
    "[6,NaN]", f"[{'9' * 4301}]", f"[{'9' * 5000}]", f"[{'9' * 20}]", "[0x6]", "[+6]",
    "[6,]", "[1_0]",
    "[6,6]", "[2,2]", "[null]", "[{}]",
)  # fmt: skip
_OFFSETS = (
    "[248,224]", "[-1,23]", "[200,224]", "[228,252]", "[224,2480]", "[224]", "[224,248,248]",
    '["224","248"]', "[224.0,248.0]", "null", "[9223372036854775808,9223372036854775832]",
    "[224,224]", "[0,24]", "[]", "{}", "224", "[true,248]", "[224,null]", "[192,216]", "[225,249]",
    "[224,18446744073709551615]", f"[224,{'9' * 5000}]", "[-0,24]",
)  # fmt: skip
_ENTRIES = (
    "null", "[]", "5", "{}", '"F32"', "true", '{"shape":[6],"data_offsets":[224,248]}',
    '{"dtype":"F32","data_offsets":[224,248]}', '{"dtype":"F32","shape":[6]}',
    '{"dtype":"F32","shape":[6],"data_offsets":[224,248],"x":1}',
    '{"dtype":null,"shape":[6],"data_offsets":[224,248]}',
    '{"dtype":7,"shape":[6],"data_offsets":[224,248]}',
    '{"dtype":["F32"],"shape":[6],"data_offsets":[224,248]}',
    '{"Dtype":"F32","shape":[6],"data_offsets":[224,248]}',
)  # fmt: skip
_METADATA = (
    "[]", '"x"', '{"a":1}', '{"a":null}', '{"a":{"b":"c"}}', '{"a":["b"]}', '{"a":true}', "5",
    '{"a":"\\ud800"}', '{"\\ud800":"a"}', '{"a":"1","a":"2"}', "true", '{"a":1.5}',
)  # fmt: skip
_NAMES = (
    "",
    "a\\u0000b",
    "../../etc/x",
    "..\\\\..\\\\x",
    "\\ud800",
    "\\udc00\\ud800",
    "a/../b",
    "a." * 100_000 + "a",
    "9" * 5000,
    "..",
)


def _values() -> Iterator[tuple[str, bytes]]:
    for dtype in _DTYPES:
        yield f"dtype {dtype[:10]}", norm('"F32"', f'"{dtype}"')
    for shape in _SHAPES:
        yield f"shape {shape[:40]}", norm("[6]", shape)
    for offsets in _OFFSETS:
        yield f"data_offsets {offsets[:40]}", norm("[224,248]", offsets)
    for place, entry in enumerate(_ENTRIES):
        yield f"entry {place}", entries(FC, B, f'"norm.weight":{entry}')
    for value in _METADATA:
        yield f"metadata {value}", file(f'{{"__metadata__":{value},{WHOLE[1:]}')
    for name in _NAMES:
        yield f"name {name}", norm("norm.weight", name)
    empty = '"norm.weight":{"dtype":"F32","shape":[-0],"data_offsets":[224,224]}'
    yield "-0 of an empty tensor", entries(FC, B, empty, data=DATA[:224])
    yield "-0 as the first offset", entries(FC.replace("[0,192]", "[-0,192]"), B, N)
    yield "a name twice", entries(FC, FC, B, N)
    yield "a name twice, other shapes", entries(FC, FC.replace("[8,6]", "[6,8]"), B, N)
    escaped = FC.replace("fc.weight", "fc\\u002eweight")
    yield "a name twice, one escaped", entries(FC, escaped, B, N)
    yield "metadata twice", file(f'{{"__metadata__":{{}},"__metadata__":{{}},{WHOLE[1:]}')
    yield "dtype twice", entries(FC.replace('"dtype"', '"dtype":"F32","dtype"', 1), B, N)
    moved = [FC.replace("[0,192]", "[8,200]"), B.replace("192,224", "200,232")]
    moved.append(N.replace("224,248", "232,256"))
    yield "a hole at the start", entries(*moved, data=b"\0" * 8 + DATA)


def _targets() -> Iterator[tuple[str, bytes, str]]:
    """Weights that an adapter cannot be merged into."""
    for shape in ("[0,6]", "[8,0]", "[8,6,0]", "[8,0,3,3]", "[0]"):
        parts = [f'"fc.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}']
        parts += [B.replace("192,224", "0,32"), N.replace("224,248", "32,56")]
        yield f"a target of {shape}", entries(*parts, data=BIAS + NORM), "fit"
    scalar = [FC.replace("[8,6]", "[]").replace("0,192", "0,4"), B.replace("192,224", "4,36")]
    scalar.append(N.replace("224,248", "36,60"))
    yield "a scalar target", entries(*scalar, data=WEIGHT[:4] + BIAS + NORM), "fit"
    for dtype, part in (("I32", 192), ("U8", 48), ("BOOL", 48), ("F8_E4M3", 48), ("F8_E5M2", 48)):
        content = safetensors({**BASE, "fc.weight": (dtype, [8, 6], WEIGHT[:part])})
        yield f"a target of {dtype}", content, "fit"
    for name, value in (("NaN", "nan"), ("infinity", "inf"), ("-infinity", "-inf")):
        odd = struct.pack("<f", float(value)) + WEIGHT[4:]
        yield (
            f"{name} in the target",
            safetensors({**BASE, "fc.weight": ("F32", [8, 6], odd)}),
            "input",
        )


def _bombs() -> Iterator[tuple[str, Callable[[], bytes], tuple[str, ...]]]:
    """Headers that ask for more work than their size explains; made when they are needed."""

    def many(entry: str, count: int) -> bytes:
        return entries(FC, B, N, *(entry.format(number) for number in range(count)))

    none = '"t{0}":{{"dtype":"F32","shape":[0],"data_offsets":[248,248]}}'
    odd = '"t{0}":{{"dtype":"Q","shape":[],"data_offsets":[248,248]}}'
    over = '"t{0}":{{"dtype":"F32","shape":[6],"data_offsets":[224,248]}}'
    values = (
        ("lists", "[],", 8_000_000), ("objects", '{"a":{}},', 3_000_000),
        ("numbers", "0,", 12_000_000),
        ("floats", "1.5,", 8_000_000), ("texts", '"ab",', 5_000_000),
    )  # fmt: skip
    yield "400,000 tensors without elements", lambda: many(none, 400_000), ("limit",)
    yield "100,000 tensors without elements", lambda: many(none, 100_000), ("limit",)
    yield "18,000 entries of unknown dtype", lambda: many(odd, 18_000), ("input",)
    yield "18,000 tensors that overlap", lambda: many(over, 18_000), ("input",)
    for name, part, count in values:
        yield (
            f"{count:,} {name}",
            lambda part=part, count=count: file(f'{{"__metadata__":[{part * count}0],{WHOLE[1:]}'),
            ("limit",),
        )
    wide = '{{"__metadata__":{{"a":"\U0001f600{}"}},{}'
    yield "a wide text of 40 MB", lambda: file(wide.format("x" * 40_000_000, WHOLE[1:])), ("limit",)
    yield "1,500,000 metadata", lambda: _metadata(1_500_000), ("limit",)
    yield (
        "a list of 1,000,000 sizes",
        lambda: norm("[6]", f"[{'1,' * 999_999}7]"),
        ("input", "limit"),
    )


def _metadata(count: int) -> bytes:
    keys = ",".join(f'"{number:x}":""' for number in range(count))
    return file(f'{{"__metadata__":{{{keys}}},{WHOLE[1:]}')


def _right() -> Iterator[tuple[str, bytes]]:
    """Files that look odd, which the library reads with the same values."""
    yield "metadata null", file(f'{{"__metadata__":null,{WHOLE[1:]}')
    yield "a name of 1 MB", norm("norm", "n" * 1_000_000)
    yield "an unused empty tensor", safetensors({**BASE, "z": ("F32", [0, 3], b"")})
    yield "a rank of 100", norm("[6]", f"[{'1,' * 99}6]")
    yield "odd values of BOOL", safetensors({**BASE, "m": ("BOOL", [3], b"\x02\xff\x00")})
    yield (
        "names that differ in case",
        safetensors({**BASE, "Norm.weight": ("F32", [6], numbers(6, 9))}),
    )


def cases() -> list[Case]:
    """List the cases of this group."""
    found: dict[str, Case] = {}
    for name, content in (*_lengths(), *_texts(), *_tokens(), *_values()):
        found[name] = Case(GROUP, name, merging(content))
    for name, content, expected in _targets():
        found[name] = Case(GROUP, name, merging(content), (expected,))
    for name, make, expected in _bombs():
        found[name] = Case(GROUP, f"bomb: {name}", _later(make), expected)
    for name, content in _right():
        found[name] = Case(GROUP, name, merging(content), (RIGHT,))
    return list(found.values())


def _later(make: Callable[[], bytes]) -> Callable[[Path], Callable[[], object]]:
    def prepare(folder: Path) -> Callable[[], object]:
        return merging(make())(folder)

    return prepare
