"""Malformed JSON beside right weights: configs, an index, a manifest, a list of modules."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from hostile.case import Case
from hostile.tensors_file import BASE, BIAS, NORM, WEIGHT, numbers, safetensors

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP = "JSON"
MODEL = {
    "base_model.model.fc.lora_A.weight": ("F32", [2, 6], numbers(12, 4)),
    "base_model.model.fc.lora_B.weight": ("F32", [8, 2], numbers(16, 5)),
}
CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 6}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"], "bias": "none"}
INDEX = {
    "metadata": {"total_size": 248},
    "weight_map": {
        "fc.weight": "model-00001-of-00002.safetensors",
        "fc.bias": "model-00001-of-00002.safetensors",
        "norm.weight": "model-00002-of-00002.safetensors",
    },
}
DIGEST = "0" * 64
MANIFEST: dict[str, Any] = {
    "format": 1,
    "outputs": [{"name": "merged.safetensors", "sha256": DIGEST}],
    "inputs": {
        "base": [{"name": "base.safetensors", "sha256": DIGEST}],
        "adapters": [{"name": "lora", "tensors_sha256": DIGEST, "weight": 1.0}],
        "merged_before": [],
    },
    "options": {},
    "recipe": "auto",
    "updates": {
        "fc.weight": [
            {
                "adapter": 0,
                "alpha": 4.0,
                "fan_in_fan_out": False,
                "enable_lora": [],
                "rank": 2,
                "kind": "linear",
                "module": "fc",
            }
        ]
    },
    "verification": None,
}
MODULES = [{"idx": 0, "path": "0_Transformer", "type": "x"}]


def merging(name: str, content: bytes) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares a merge of two folders, in which one file has these bytes.

    name: "config.json", "model.safetensors.index.json", "modules.json" or "adapter_config.json".
    """

    def prepare(folder: Path) -> Callable[[], object]:
        base, adapter = folder / "base", folder / "lora"
        for place in (base, adapter):
            place.mkdir()
        (base / "config.json").write_text(json.dumps(CONFIG))
        if name.endswith("index.json"):
            _write_shards(base)
        else:
            (base / "model.safetensors").write_bytes(safetensors(BASE))
        (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER))
        (adapter / "adapter_model.safetensors").write_bytes(safetensors(MODEL))
        (adapter if name.startswith("adapter") else base).joinpath(name).write_bytes(content)
        out = folder / "out"
        return lambda: lora_export.merge(base, [adapter], out, verify=False, jobs=1).output

    return prepare


def _write_shards(folder: Path) -> None:
    first = {"fc.weight": ("F32", [8, 6], WEIGHT), "fc.bias": ("F32", [8], BIAS)}
    for number, tensors in enumerate((first, {"norm.weight": ("F32", [6], NORM)}), 1):
        file = folder / f"model-{number:05d}-of-00002.safetensors"
        file.write_bytes(safetensors(tensors))


def verifying(content: bytes) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares the proof of a file beside a manifest of these bytes."""

    def prepare(folder: Path) -> Callable[[], object]:
        merged = folder / "merged.safetensors"
        merged.write_bytes(safetensors(BASE))
        (folder / "merged.safetensors.lora_export.json").write_bytes(content)
        return lambda: lora_export.verify(merged).output

    return prepare


FILES: dict[str, tuple[Callable[[bytes], Callable[[Path], Callable[[], object]]], object]] = {
    "config": (partial(merging, "config.json"), CONFIG),
    "index": (partial(merging, "model.safetensors.index.json"), INDEX),
    "adapter": (partial(merging, "adapter_config.json"), ADAPTER),
    "manifest": (verifying, MANIFEST),
    "modules": (partial(merging, "modules.json"), MODULES),
}


def _broken(text: str) -> Iterator[tuple[str, bytes]]:
    """Texts that are no JSON in UTF-8, made of a right one."""
    close = text[-1]
    texts = {
        "empty": "",
        "spaces": "   \n",
        "a comma more": f"{text[:-1]},{close}",
        "a comma at the start": f"{text[0]},{text[1:]}",
        "not closed": text[:-1],
        "closed twice": text + close,
        "closed otherwise": text[:-1] + ("]" if close == "}" else "}"),
        "junk behind": f"{text}x",
        "another behind": f"{text}{text}",
        "NUL behind": f"{text}\0",
        "single quotes": text.replace('"', "'"),
        "no quotes": text.replace('"', ""),
        "no colons": text.replace(":", " "),
        "equal signs": text.replace(":", "="),
        "no commas": text.replace(",", " "),
        "semicolons": text.replace(",", ";"),
        "a comment": f"{text[0]}/* */{text[1:]}",
        "a line comment": f"// x\n{text}",
        "a hash": f"# x\n{text}",
        "a byte order mark": f"\ufeff{text}",
        "an open text": text.replace('"', "", 1),
        "a raw line break": text.replace('"', '"\n', 1),
        "a raw tab": text.replace('"', '"\t', 1),
        "a control character": text.replace('"', '"\x01', 1),
        "a bad escape": text.replace('"', '"\\x', 1),
        "half an escape": text.replace('"', '"\\u12', 1),
        "True": "True",
        "None": "None",
        "undefined": "undefined",
        "a word": "hello",
        "YAML": "a: 1\n",
        "Python": f"dict({text})",
        "a hexadecimal number": "0x10",
        "a leading zero": "01",
        "a plus sign": "+1",
        "a dot": ".5",
        "half a number": "1e",
        "two minus signs": "--1",
        "5,000 digits": "9" * 5000,
        "deep lists": "[" * 200_000 + "]" * 200_000,
        "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "deep and open": "[" * 200_000,
        "2,000 lists": "[" * 2000 + "]" * 2000,
        "HTML": "<!DOCTYPE html><html></html>",
        "XML": "<?xml?>",
    }
    for name, changed in texts.items():
        yield name, changed.encode()
    for part in (1, 3, 5):
        yield f"cut at {part} sixths", text.encode()[: len(text) * part // 6]
    yield from {
        "NULs": b"\0" * 50,
        "UTF-16": text.encode("utf-16"),
        "UTF-32": text.encode("utf-32"),
        "Latin-1": text.replace('"', '"\xf6', 1).encode("latin-1"),
        "ones": b"\xff" * 50,
        "overlong UTF-8": text.encode().replace(b'"', b'"\xc0\xaf', 1),
        "half a character": text.encode().replace(b'"', b'"\xed\xa0\x80', 1),
        "gzip": b"\x1f\x8b\x08\0" * 20,
        "a pickle": b"\x80\x02}.",
        "a zip": b"PK\3\4" + b"\0" * 50,
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }.items()


def _members(count: int) -> bytes:
    return b"{%s}" % b",".join(b'"%x":1' % number for number in range(count))


def _wide(length: int) -> bytes:
    return ('{"a":"\U0001f600' + "x" * length + '"}').encode()


def _bombs() -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "12,000,000 lists", lambda: b'{"a":[' + b"[]," * 12_000_000 + b"0]}"
    yield "3,000,000 members", partial(_members, 3_000_000)
    yield "a wide text of 30 MB", partial(_wide, 30_000_000)
    yield "100 MB", lambda: b'{"a":"' + b"x" * 100_000_000 + b'"}'


_OTHERS: dict[str, object] = {
    "null": None,
    "a list": [],
    "an object": {},
    "a text": "x",
    "a number": 7,
    "true": True,
    "a float": 1.5,
    "a list of null": [None],
    "-1": -1,
    "10**40": 10**40,
}
"""Values of every type."""


def _set(document: object, path: tuple[object, ...], value: object) -> bytes:
    """Return the document with one value replaced; `...` takes the member out."""
    changed: Any = deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(changed).encode()


_MEMBERS: dict[tuple[object, ...], str] = {
    ("format",): "a number",
    ("outputs",): "a list",
    ("outputs", 0): "",
    ("outputs", 0, "name"): "a text",
    ("outputs", 0, "sha256"): "a text",
    ("inputs",): "",
    ("inputs", "base"): "a list",
    ("inputs", "base", 0): "an object",
    ("inputs", "base", 0, "sha256"): "a text",
    ("inputs", "adapters", 0, "name"): "a text",
    ("inputs", "adapters", 0, "tensors_sha256"): "a text",
    ("inputs", "adapters", 0, "weight"): "a number,a float,-1,10**40",
    ("inputs", "merged_before"): "a list",
    ("options",): "an object",
    ("recipe",): "a text",
    ("updates",): "an object",
    ("updates", "fc.weight"): "a list",
    ("updates", "fc.weight", 0, "alpha"): "a number,a float,-1,10**40",
    ("updates", "fc.weight", 0, "fan_in_fan_out"): "true",
    ("updates", "fc.weight", 0, "kind"): "a text",
    ("updates", "fc.weight", 0, "rank"): "a number,-1,10**40",
    ("updates", "fc.weight", 0, "module"): "a text",
    ("verification",): "null",
}
"""The manifest's members, with the names of the values above that are of their type."""

_NAMES = {
    "a path up": "../x",
    "an absolute path": "/etc/passwd",
    "a backslash": "a\\b",
    "no name": "",
    "a dot": ".",
    "two dots": "..",
    "a NUL": "a\0b",
    "300 characters": f"{'n' * 300}.safetensors",
    "half a character": "\ud800.safetensors",
    "a path of dots": "a/../b",
    "a slash": "a/",
}
"""Names that no file of the folder has."""


def _manifests() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    for path, right in _MEMBERS.items():
        place = ".".join(map(str, path))
        for name, value in _OTHERS.items():
            if name not in right.split(","):
                yield f"{place} is {name}", _set(MANIFEST, path, value), ("input", "verification")
    for name, value in _NAMES.items():
        yield f"an output of {name}", _set(MANIFEST, ("outputs", 0, "name"), value), ("input",)
    more = [{"name": f"f{number}", "sha256": ""} for number in range(200_000)]
    yield "200,000 outputs", _set(MANIFEST, ("outputs",), more), ("verification",)
    yield "an output twice", _set(MANIFEST, ("outputs",), MANIFEST["outputs"] * 2), ("input",)


def _indexes() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    first = ("weight_map", "fc.weight")
    others = {name: value for name, value in _OTHERS.items() if name != "true"}
    for name, value in {**_NAMES, **others, "another folder": "lora/x.safetensors"}.items():
        yield f"a file of {name}", _set(INDEX, first, value), ("input",)
    for name, value in others.items():
        yield f"weight_map is {name}", _set(INDEX, ("weight_map",), value), ("input",)
        if name != "an object":
            yield f"metadata is {name}", _set(INDEX, ("metadata",), value), ("input",)
    for name in ("config.json", "model.safetensors.index.json", "gone.safetensors", "adir"):
        yield f"a shard that is {name}", _set(INDEX, first, name), ("input",)
    yield "no weight_map", _set(INDEX, ("weight_map",), ...), ("input",)
    yield "a tensor less", _set(INDEX, first, ...), ("input",)
    yield (
        "a tensor more",
        _set(INDEX, ("weight_map", "ghost"), "model-00001-of-00002.safetensors"),
        ("input",),
    )
    yield (
        "a tensor of the other shard",
        _set(INDEX, first, "model-00002-of-00002.safetensors"),
        ("input",),
    )
    text = json.dumps(INDEX)
    yield "a key twice", text.replace('"fc.bias"', '"fc.weight"').encode(), ("input",)
    ghosts = {f"g{number}": f"f{number}" for number in range(100_000)}
    yield "100,000 shards that are not there", _set(INDEX, ("weight_map",), ghosts), ("input",)
    same = {f"g{number}": "model-00001-of-00002.safetensors" for number in range(100_000)}
    yield "100,000 tensors that are not there", _set(INDEX, ("weight_map",), same), ("input",)


_ADAPTER_TYPES = {
    "r": "a number",
    "lora_alpha": "a number,a float,-1,10**40,null",
    "target_modules": "a text,null",
    "rank_pattern": "an object,null,a list",
    "alpha_pattern": "an object,null,a list",
    "use_dora": "true,null",
    "use_rslora": "true,null",
    "lora_bias": "true,null",
    "peft_type": "null,a list,an object",
}
"""The fields of a LoRA config, with the values above that may be right."""

_PATTERNS = (
    "(([a-z_.0-9])+)+X",
    "(a|a)*b",
    "(a|aa)+$",
    "([a-zA-Z]+)*X",
    "(.*)*x",
    "(.*a){25}",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    "(?:a?){30}a{30}",
    "(\\w+\\s?)*X",
    "((((((a*)*)*)*)*)*)b",
    "(?=(a+))a*b\\1",
    "[",
    "(",
    "a{100000000}",
    "\\",
    "*",
    "(?P<n>a)(?P=n)",
    "a" * 1001,
)
"""Regular expressions that are broken, or that Python would match for years."""


def _adapters() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    kinds = ("input", "limit", "usage", "fit")
    for field, right in _ADAPTER_TYPES.items():
        for name, value in _OTHERS.items():
            if name not in right.split(","):
                yield f"{field} is {name}", _set(ADAPTER, (field,), value), kinds
        text = json.dumps(ADAPTER | {field: 1})
        for number in ("NaN", "Infinity", "-Infinity", "1e999"):
            if field in {"r", "lora_alpha"}:
                changed = text.replace(f'"{field}": 1', f'"{field}": {number}')
                yield f"{field} is {number}", changed.encode(), kinds
    for number, pattern in enumerate(_PATTERNS):
        yield f"pattern {number}", _set(ADAPTER, ("target_modules",), pattern), kinds
    yield "a key twice", json.dumps(ADAPTER).replace('"bias"', '"r"').encode(), ("input",)
    yield (
        "10,001 patterns",
        _set(ADAPTER, ("rank_pattern",), {f"m{n}": 4 for n in range(10_001)}),
        kinds,
    )
    yield "a rank of 10**8", _set(ADAPTER, ("r",), 10**8), kinds
    yield "another rank", _set(ADAPTER, ("r",), 8), kinds
    yield "no r", _set(ADAPTER, ("r",), ...), kinds
    yield "100,000 layers again", _set(ADAPTER, ("layer_replication",), [[0, 2]] * 100_000), kinds
    yield "10**9 layers", _set(ADAPTER, ("layer_replication",), [[0, 10**9]]), kinds
    yield "an unknown tuner", _set(ADAPTER, ("peft_type",), "PROMPT_TUNING"), kinds


def cases() -> list[Case]:
    """List the cases of this group."""
    found = []
    for file, (prepare, document) in FILES.items():
        for name, content in _broken(json.dumps(document)):
            found.append(Case(GROUP, f"{file}: {name}", prepare(content)))
        for name, make in _bombs():
            later = _later(prepare, make)
            found.append(Case(GROUP, f"{file}: bomb: {name}", later, ("limit", "input")))
    lists = {"manifest": _manifests(), "index": _indexes(), "adapter": _adapters()}
    for file, made in lists.items():
        for name, content, kinds in made:
            found.append(Case(GROUP, f"{file}: {name}", FILES[file][0](content), kinds))
    return found + [
        Case(GROUP, f"{file}: {name} at the top", FILES[file][0](json.dumps(value).encode()))
        for file in ("config", "index", "adapter", "manifest")
        for name, value in _OTHERS.items()
        if name != "an object"
    ]


def _later(
    prepare: Callable[[bytes], Callable[[Path], Callable[[], object]]], make: Callable[[], bytes]
) -> Callable[[Path], Callable[[], object]]:
    def later(folder: Path) -> Callable[[], object]:
        return prepare(make())(folder)

    return later
