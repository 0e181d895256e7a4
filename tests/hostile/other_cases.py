"""Malformed undo files, planted captures, and folders that no one would have made by chance."""

from __future__ import annotations

import base64
import json
import os
import struct
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostile.case import Case
from hostile.onnx_cases import model
from hostile.tensors_file import BASE, LORA, WEIGHT, safetensors

import lora_export
from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx

GROUP = "other"
KEY = "ab" * 32


def _description() -> dict[str, Any]:
    """Return what a merge writes into its undo file."""
    whole = safetensors(BASE)
    header = whole[: 8 + struct.unpack("<Q", whole[:8])[0]]
    shard = {
        "file": "model.safetensors",
        "header": base64.b64encode(header).decode(),
        "sha256": sha256(whole).hexdigest(),
    }
    return {
        "format": 1,
        "layout": "folder",
        "shards": [shard],
        "index": None,
        "edited": {"config.json": base64.b64encode(b"{}").decode()},
        "kept": [],
    }


def restoring(text: str) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares an unmerge by an undo file with this description."""

    def prepare(folder: Path) -> Callable[[], object]:
        merged, undo = folder / "merged", folder / "undo.safetensors"
        merged.mkdir()
        (merged / "config.json").write_text("{}")
        (merged / "model.safetensors").write_bytes(safetensors(BASE))
        tensors = {"fc.weight": ("F32", [8, 6], WEIGHT)}
        undo.write_bytes(safetensors(tensors, {"lora_export.undo": text}))
        return lambda: lora_export.unmerge(merged, folder / "out", undo=undo, jobs=1).output

    return prepare


_ODD = {
    "a path up": "../planted",
    "a path far up": "../../../planted",
    "an absolute path": "/tmp/planted",  # noqa: S108
    "a path through a folder": "a/../../planted",
    "no name": "",
    "two dots": "..",
    "a NUL": "a\0b",
    "a backslash": "..\\planted",
    "300 characters": "n" * 300,
    "half a character": "\ud800",
}


def _undo() -> Iterator[tuple[str, str]]:
    content = base64.b64encode(b"x").decode()
    for what, name in _ODD.items():
        yield f"an edited file of {what}", json.dumps(_description() | {"edited": {name: content}})
        yield f"a kept file of {what}", json.dumps(_description() | {"kept": [name]})
        index = {"name": name, "content": content}
        yield f"an index of {what}", json.dumps(_description() | {"index": index})
        shard = _description()["shards"][0] | {"file": name}
        yield f"a shard of {what}", json.dumps(_description() | {"shards": [shard]})
    for member in ("format", "layout", "shards", "index", "edited", "kept"):
        for what, value in {"null": None, "a number": 7, "a text": "x", "a list": [None]}.items():
            if (member, what) != ("index", "null"):
                yield f"{member} is {what}", json.dumps(_description() | {member: value})
        yield f"no {member}", json.dumps({k: v for k, v in _description().items() if k != member})
    for what, header in {"no base64": "!", "a cut header": content, "a number": 5}.items():
        shard = _description()["shards"][0] | {"header": header}
        yield f"a header of {what}", json.dumps(_description() | {"shards": [shard]})
    yield "no JSON", "{"
    yield "deep JSON", "[" * 200_000


def taking(plant: Callable[[Path, Path], None]) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares the use of a cache in which an entry was planted.

    plant: gets the folder of the cache and the place of the entry, which is right before.
    """

    def prepare(folder: Path) -> Callable[[], object]:
        from lora_export.onnx_export.capture.captures import Captures

        cache = folder / "cache"
        captures = Captures(cache)
        assert captures.keep(KEY, hollow()) == ""
        plant(cache, cache / f"{KEY}.capture")

        def take() -> None:
            """Refuse, in the words of the suite, what the cache does not give."""
            if captures.take(KEY) is None:
                raise InputError("the entry is not used")

        return take

    return prepare


def hollow() -> onnx.ModelProto:
    """Return a graph as captures are: bound initializers hold no data."""
    found = model()
    found.graph.initializer[0].ClearField("raw_data")
    return found


def _written(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path, Path], None]:
    """Return what plants a changed graph with a right head and digest."""

    def plant(_cache: Path, entry: Path) -> None:
        from lora_export.onnx_export.capture.captures import _head

        found = hollow()
        change(found)
        payload = found.SerializeToString()
        entry.write_bytes(_head(KEY, payload) + payload)

    return plant


def _captures() -> Iterator[tuple[str, Callable[[Path, Path], None]]]:
    from onnx import TensorProto, helper

    def replaced(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
        def plant(_cache: Path, entry: Path) -> None:
            entry.unlink()
            make(entry)

        return plant

    def linked(cache: Path, entry: Path) -> None:
        entry.rename(cache.with_name("elsewhere"))
        entry.symlink_to(cache.with_name("elsewhere"))

    def flipped(_cache: Path, entry: Path) -> None:
        content = entry.read_bytes()
        entry.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])

    outside = TensorProto(name="leak", data_type=2, dims=[20], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    more = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    yield from {
        "a pipe": replaced(os.mkfifo),
        "a folder": replaced(Path.mkdir),
        "a link to a device": replaced(lambda e: e.symlink_to("/dev/zero")),
        "a link to a right entry": linked,
        "a link that leads nowhere": replaced(lambda e: e.symlink_to("gone")),
        "a sparse file of 5 GB": lambda _c, e: os.truncate(e, 5 << 30),
        "an empty entry": lambda _c, e: os.truncate(e, 0),
        "half an entry": lambda _c, e: os.truncate(e, 200),
        "a changed bit": flipped,
        "an entry that all may write": lambda _c, e: e.chmod(0o666),
        "an entry that the group may write": lambda _c, e: e.chmod(0o620),
        "a folder that all may write": lambda c, _e: c.chmod(0o777),
        "a folder that the group may write": lambda c, _e: c.chmod(0o770),
        "junk": lambda _c, e: e.write_bytes(b"\xff" * 1000),
        "an unknown operator": _written(lambda m: setattr(m.graph.node[0], "op_type", "Evil")),
        "another domain": _written(lambda m: setattr(m.graph.node[0], "domain", "evil.ops")),
        "another operator set": _written(
            lambda m: m.opset_import.add(domain="evil.ops", version=1)
        ),
        "operator set 9999": _written(lambda m: setattr(m.opset_import[0], "version", 9999)),
        "no operator set": _written(lambda m: m.ClearField("opset_import")),
        "a node that no output needs": _written(
            lambda m: m.graph.node.append(helper.make_node("Identity", ["y"], ["z"]))
        ),
        "an unexplained constant": _written(lambda m: m.graph.initializer.append(more)),
        "a weight with data": _written(
            lambda m: setattr(m.graph.initializer[0], "raw_data", b"\1" * 192)
        ),
        "external data": _written(lambda m: m.graph.initializer.append(outside)),
        "a sparse initializer": _written(
            lambda m: m.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(more)
        ),
        "a function": _written(lambda m: m.functions.add(name="f", domain="x")),
        "training": _written(lambda m: m.training_info.add()),
        "foreign metadata": _written(lambda m: m.metadata_props.add(key="evil", value="x")),
        "a doc_string": _written(lambda m: setattr(m, "doc_string", "planted")),
        "no table": _written(lambda m: m.ClearField("metadata_props")),
        "a deep table": _written(lambda m: setattr(m.metadata_props[0], "value", "[" * 200_000)),
        "a table of another name": _written(lambda m: setattr(m.graph.initializer[0], "name", "v")),
    }.items()


def typo(folder: Path) -> Callable[[], object]:
    for number in range(20_000):
        (folder / f"model-{number:05d}-of-20000.safetensor").touch()
    missing = folder / "model-00001-of-20000.safetensors"
    return lambda: lora_export.inspect(missing)


def at(make: Callable[[Path], object], name: str = "base.safetensors") -> Any:
    def prepare(folder: Path) -> Callable[[], object]:
        make(folder / name)
        (folder / "lora.safetensors").write_bytes(safetensors(LORA))
        out = folder / "out.safetensors"
        return lambda: lora_export.merge(folder / name, [folder / "lora.safetensors"], out, alpha=4)

    return prepare


def named(name: str) -> Any:
    return lambda folder: lambda: lora_export.inspect(folder / name)


def merged(name: str) -> Any:
    def prepare(folder: Path) -> Callable[[], object]:
        adapter, out = folder / "lora.safetensors", folder / "out.safetensors"
        adapter.write_bytes(safetensors(LORA))
        return lambda: lora_export.merge(folder / name, [adapter], out, alpha=4)

    return prepare


def proven(name: str) -> Any:
    return lambda folder: lambda: lora_export.verify(folder / name)


def _folders() -> Iterator[tuple[str, Callable[[Path], Callable[[], object]], tuple[str, ...]]]:
    input_only = ("input",)
    yield "a typo beside 20,000 files", typo, input_only
    yield "a pipe for a base", at(os.mkfifo), input_only
    yield "a device for a base", at(lambda p: p.symlink_to("/dev/zero")), input_only
    yield "a sparse base of 5 GB", at(lambda p: (p.touch(), os.truncate(p, 5 << 30))), input_only
    yield "a link in a circle", at(lambda p: p.symlink_to(p)), ("input", "storage")
    yield "an empty folder", at(Path.mkdir, "base"), input_only
    for what, name in {
        "300 characters": "n" * 300,
        "half a character": "\ud800",
        "a NUL": "a\0b",
    }.items():
        yield f"a path of {what}", named(name), input_only
        yield f"an ONNX path of {what}", named(f"{name}.onnx"), input_only
        yield f"a base of {what}", merged(name), input_only
        yield f"a result of {what}", proven(name), input_only
    yield "a path of 5,000 folders", named("a/" * 5_000), input_only


def cases() -> list[Case]:
    """List the cases of this group."""
    found = [Case(GROUP, f"undo: {what}", restoring(text)) for what, text in _undo()]
    found += [Case(GROUP, f"capture: {what}", taking(plant)) for what, plant in _captures()]
    found += [Case(GROUP, f"folder: {what}", make, kinds) for what, make, kinds in _folders()]
    return found
