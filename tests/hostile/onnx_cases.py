"""Malformed ONNX files of ours, each inspected, and read as an audit reads it."""

from __future__ import annotations

import os
import struct
from functools import partial
from typing import TYPE_CHECKING

from hostile.case import Case
from hostile.tensors_file import numbers
from onnx import TensorProto, helper, numpy_helper

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx

GROUP = "ONNX"
OUTSIDE = "/etc/passwd"


def model() -> onnx.ModelProto:
    """Return a right file of ours: one product, with its table from parameters to initializers."""
    import numpy as np

    from lora_export.onnx_export.file.bindings import Binding, Bindings, write_bindings

    value = np.frombuffer(numbers(48, 1), np.float32).reshape(6, 8)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    write_bindings(made, Bindings({"fc.weight": Binding("w", (1, 0))}))
    return made


def reading(content: Callable[[Path], bytes]) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares the inspection and the audit's reading of a file."""

    def prepare(folder: Path) -> Callable[[], object]:
        file = folder / "x.onnx"
        file.write_bytes(content(folder))
        return partial(read, file)

    return prepare


def read(file: Path) -> None:
    """Read a file as `inspect` and the audit do; a failed check is a refusal.

    Raises:
        LoraExportError: the file is refused.
    """
    from lora_export.errors import InputError
    from lora_export.onnx_export.capture.dimensions import differences
    from lora_export.onnx_export.file import audit, external
    from lora_export.onnx_export.file.bindings import read_bindings
    from lora_export.onnx_export.file.topology import describe

    lora_export.inspect(file)
    failed = [check for check in audit.check_readable(file) if not check.passed]
    if failed:
        raise InputError(failed[0].detail, where=str(file))
    found = external.load(file)
    bindings = read_bindings(found)
    faults = [
        *audit._unbound(found, bindings, {"fc.weight": None}),
        *audit._unexplained(found, bindings),
        *audit._graph_differences(found, describe(model())),
    ]
    shapes = [list(tensor.dims) for tensor in found.graph.initializer]
    if faults or shapes != [[6, 8]] or differences(found, ()):
        raise InputError("; ".join(faults) or f"other shapes: {shapes}", where=str(file))
    if found.graph.initializer[0].raw_data != model().graph.initializer[0].raw_data:
        raise InputError("other values", where=str(file))


def _external(
    location: str = "d.bin", offset: str = "0", length: str | None = "192", *more: tuple[str, str]
) -> Callable[[Path], bytes]:
    """Return a maker of a file whose weight lies outside."""

    def make(folder: Path) -> bytes:
        found = model()
        weight = found.graph.initializer[0]
        data = weight.raw_data
        (folder / "d.bin").write_bytes(data)
        (folder / "short.bin").write_bytes(data[:-1])
        (folder / "link.bin").symlink_to(OUTSIDE)
        (folder / "near.bin").symlink_to("d.bin")
        (folder / "one.bin").write_bytes(data)
        os.link(folder / "one.bin", folder / "hard.bin")
        os.mkfifo(folder / "fifo.bin")
        weight.ClearField("raw_data")
        weight.data_location = weight.EXTERNAL
        pairs = [("location", location), ("offset", offset), ("length", length), *more]
        for key, value in pairs:
            if value is not None:
                weight.external_data.add(key=key, value=value)
        return found.SerializeToString()

    return make


_LOCATIONS = {
    "a path up": "../d.bin",
    "an absolute path": OUTSIDE,
    "a link outside": "link.bin",
    "a link inside": "near.bin",
    "a hard link": "hard.bin",
    "a hard link's other name": "one.bin",
    "a short file": "short.bin",
    "a file that is not there": "gone.bin",
    "the folder": ".",
    "the folder above": "..",
    "300 characters": "n" * 300,
    "a NUL": "a\0b",
    "a backslash": "..\\d.bin",
    "the model itself": "x.onnx",
    "a pipe": "fifo.bin",
    "a device": "/dev/zero",
    "a URL": "http://x/d.bin",
    "a folder in between": "a/../d.bin",
    "no location": "",
    "a dot before": "./d.bin",
}
_NUMBERS = {
    "-4": "-4",
    "5,000 digits": "9" * 5000,
    "an Arabic digit": "\u0660",
    "a superscript": "\u00b2",
    "2**63": str(2**63),
    "2**64": str(2**64),
    "1e3": "1e3",
    "hexadecimal": "0x10",
    "a plus": "+4",
    "a space": " 4",
    "an underscore": "1_0",
    "a float": "4.0",
    "nothing": "",
    "beyond": "100000",
}


def outside(name: str = "leak") -> TensorProto:
    found = TensorProto(name=name, data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    found.external_data.add(key="location", value=OUTSIDE)
    found.external_data.add(key="length", value="4")
    return found


def constant(tensor: TensorProto, output: str = "k") -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor)


def in_function(m: onnx.ModelProto) -> None:
    m.functions.add(name="f", domain="d", output=["k"]).node.append(constant(outside()))


def in_sparse(m: onnx.ModelProto) -> None:
    m.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(outside())


def in_branch(m: onnx.ModelProto) -> None:
    inner = helper.make_graph([constant(outside())], "inner", [], [])
    m.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


def in_training(m: onnx.ModelProto) -> None:
    m.training_info.add().algorithm.initializer.append(outside())


def large(name: str) -> TensorProto:
    return TensorProto(name=name, data_type=1, dims=[2048], raw_data=bytes(8192))


def weight(**values: object) -> Callable[[onnx.ModelProto], None]:
    def change(m: onnx.ModelProto) -> None:
        tensor = m.graph.initializer[0]
        for key, value in values.items():
            tensor.ClearField(key)
            if key == "dims":
                tensor.dims.extend(value)
            elif value is not None:
                setattr(tensor, key, value)

    return change


def table(text: str) -> Callable[[onnx.ModelProto], None]:
    return lambda m: setattr(m.metadata_props[0], "value", text)


def node(**values: object) -> Callable[[onnx.ModelProto], None]:
    return lambda m: [setattr(m.graph.node[0], key, value) for key, value in values.items()]


def _changes() -> Iterator[tuple[str, Callable[[onnx.ModelProto], object]]]:
    """Changes of the right file, in place."""
    raw = model().graph.initializer[0].raw_data
    entry = '{"initializer":"w","kind":"parameter","transform":"transpose","perm":%s}'
    whole = '{"version":1,"parameters":{"fc.weight":%s},"unused":[],"constants":[]}'
    yield from {
        "external data in a function": in_function,
        "external data in a sparse initializer": in_sparse,
        "external data in a branch": in_branch,
        "external data for training": in_training,
        "external data in a node": lambda m: m.graph.node.append(constant(outside())),
        "a large weight in a function": lambda m: m.functions.add(
            name="f", domain="d", output=["k"]
        ).node.append(constant(large("f"))),
        "a large sparse weight": lambda m: m.graph.sparse_initializer.add(
            dims=[9999]
        ).values.CopyFrom(large("s")),
        "a large weight in a node": lambda m: m.graph.node.insert(0, constant(large("n"))),
        "a large weight more": lambda m: m.graph.initializer.append(large("more")),
        "an empty function": lambda m: m.functions.add(name="f", domain="d"),
        "sizes of 2**40": weight(dims=[2**40, 2**40]),
        "negative sizes": weight(dims=[-6, -8]),
        "no sizes": weight(dims=[]),
        "another shape": weight(dims=[8, 6]),
        "three sizes": weight(dims=[6, 8, 1]),
        "type 99": weight(data_type=99),
        "type 0": weight(data_type=0),
        "type -1": weight(data_type=-1),
        "texts": weight(data_type=8),
        "halves": weight(data_type=10),
        "doubles": weight(data_type=11),
        "short data": weight(raw_data=raw[:-1]),
        "long data": weight(raw_data=raw + b"\0"),
        "no data": weight(raw_data=None),
        "NaN": weight(raw_data=struct.pack("<f", float("nan")) + raw[4:]),
        "a changed bit": weight(raw_data=bytes([raw[0] ^ 1]) + raw[1:]),
        "another name": weight(name="v"),
        "an initializer twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "a cycle": lambda m: m.graph.node[0].input.append("y"),
        "an unknown operator": node(op_type="Evil"),
        "another operator": node(op_type="Gemm"),
        "another domain": node(domain="evil"),
        "no operator": node(op_type=""),
        "a node twice": lambda m: m.graph.node.append(m.graph.node[0]),
        "no nodes": lambda m: m.graph.ClearField("node"),
        "a node more": lambda m: m.graph.node.append(helper.make_node("Identity", ["y"], ["z"])),
        "no outputs": lambda m: m.graph.ClearField("output"),
        "no inputs": lambda m: m.graph.ClearField("input"),
        "no graph": lambda m: m.ClearField("graph"),
        "operator set 9999": lambda m: setattr(m.opset_import[0], "version", 9999),
        "operator set 19": lambda m: setattr(m.opset_import[0], "version", 19),
        "no operator set": lambda m: m.ClearField("opset_import"),
        "another operator set": lambda m: m.opset_import.add(domain="evil", version=1),
        "version 9999": lambda m: setattr(m, "ir_version", 9999),
        "no table": lambda m: m.ClearField("metadata_props"),
        "a table of an open list": table("["),
        "an empty table": table(""),
        "a deep table": table("[" * 200_000),
        "a table of a list": table("[]"),
        "a table of a text": table('"x"'),
        "a table of no parameters": table(
            '{"version":1,"parameters":[1],"unused":5,"constants":{}}'
        ),
        "a table of version 9": table(whole.replace("1", "9", 1) % (entry % "[1,0]")),
        "a table of no permutation": table(whole % (entry % "[0,0]")),
        "a table of a permutation of texts": table(whole % (entry % '["1",null]')),
        "a table of another initializer": table(whole.replace("fc", "fd") % (entry % "[1,0]")),
        "a table with a key twice": table('{"version":1,' + (whole % (entry % "[1,0]"))[1:]),
        "5,000 digits in a table": table(whole % (entry % f"[{'9' * 5000}]")),
    }.items()


def _raw() -> Iterator[tuple[str, bytes]]:
    content = model().SerializeToString()
    yield from {
        "empty": b"",
        "zeros": bytes(500),
        "ones": b"\xff" * 500,
        "text": b"hello",
        "cut": content[:-10],
        "half": content[: len(content) // 2],
        "one byte more": content + b"\0",
        "a wrong wire type": b"\x0f" * 40,
        "a long field": b"\x3a\xff\xff\xff\xff\x7f",
        "an endless number": b"\x08" + b"\xff" * 30,
        "fields in fields": b"\x3a\x7f" * 200,
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "HTML": b"<!DOCTYPE html>",
        "a zip": b"PK\3\4" + bytes(60),
        "safetensors": b"\x02\0\0\0\0\0\0\0{}",
    }.items()


def _changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], bytes]:
    def make(_folder: Path) -> bytes:
        found = model()
        change(found)
        return found.SerializeToString()

    return make


def _branches(count: int) -> Callable[[Path], bytes]:
    """Return a maker of a file with as many branches as values."""

    def change(m: onnx.ModelProto) -> None:
        inner = helper.make_graph([helper.make_node("Identity", ["x"], ["i"])], "inner", [], [])
        m.graph.node.extend(
            helper.make_node("If", ["x"], [f"b{place}"], then_branch=inner, else_branch=inner)
            for place in range(count)
        )

    return _changed(change)


def cases() -> list[Case]:
    """List the cases of this group."""
    makers: dict[str, Callable[[Path], bytes]] = {}
    for name, location in _LOCATIONS.items():
        makers[f"external data in {name}"] = _external(location)
    for name, value in _NUMBERS.items():
        makers[f"an offset of {name}"] = _external(offset=value)
        makers[f"a length of {name}"] = _external(length=value)
    makers["no length"] = _external(length=None)
    makers["a location twice"] = _external("d.bin", "0", "192", ("location", OUTSIDE))
    makers["an offset that is not zero"] = _external("d.bin", "4")
    for name, change in _changes():
        makers[name] = _changed(change)
    for name, content in _raw():
        makers[f"bytes: {name}"] = lambda _folder, content=content: content
    makers["5,000 branches"] = _branches(5_000)
    return [Case(GROUP, name, reading(make)) for name, make in makers.items()]
