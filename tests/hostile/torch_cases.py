"""Malformed files of torch.save, each given as the base of a merge."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

from hostile.case import RIGHT, Case
from hostile.pickle_file import (
    BLOBS,
    GOOD,
    MAGIC,
    OLD,
    STORAGES,
    archive,
    call,
    mapping,
    name,
    number,
    old_format,
    pickled,
    row,
    saved,
    state_dict,
    storage,
    tensor,
    text,
)
from hostile.tensors_file import BIAS, LORA, NORM, WEIGHT, numbers, safetensors

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP = "torch"
MARKER = "touch /tmp/lora-export-was-here"
LIMIT = ("limit",)


def merging(content: bytes) -> Callable[[Path], Callable[[], object]]:
    """Return what prepares a merge of a right adapter into a base of these bytes."""

    def prepare(folder: Path) -> Callable[[], object]:
        base, adapter = folder / "base.pt", folder / "lora.safetensors"
        base.write_bytes(content)
        adapter.write_bytes(safetensors(LORA))
        return lambda: (
            lora_export.merge(base, [adapter], folder / "out.safetensors", alpha=4, jobs=1).output
        )

    return prepare


def weight(value: bytes) -> bytes:
    """Return the base with another value for its first tensor."""
    return saved([("fc.weight", value), *GOOD[1:]])


def beside(value: bytes, key: str = "note") -> bytes:
    """Return the base with a value beside its tensors."""
    return saved([*GOOD, (key, value)])


_FUNCTIONS = (
    ("posix", "system"),
    ("os", "system"),
    ("os", "popen"),
    ("os", "execv"),
    ("os", "remove"),
    ("os", "rename"),
    ("os", "putenv"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("__builtin__", "eval"),
    ("__builtin__", "execfile"),
    ("builtins", "compile"),
    ("builtins", "open"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("builtins", "setattr"),
    ("builtins", "map"),
    ("builtins", "breakpoint"),
    ("importlib", "import_module"),
    ("runpy", "_run_code"),
    ("runpy", "run_path"),
    ("shutil", "rmtree"),
    ("shutil", "copyfile"),
    ("socket", "create_connection"),
    ("urllib.request", "urlopen"),
    ("webbrowser", "open"),
    ("ctypes", "CDLL"),
    ("code", "interact"),
    ("pty", "spawn"),
    ("platform", "popen"),
    ("timeit", "timeit"),
    ("cProfile", "run"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("marshal", "loads"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("functools", "reduce"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.jit", "script"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_import_dotted_name"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("pathlib", "os.system"),
    ("asyncio.subprocess", "create_subprocess_shell"),
    ("multiprocessing.util", "spawnv_passfds"),
    ("logging.config", "listen"),
    ("pip", "main"),
    ("pydoc", "pipepager"),
    ("bdb", "Bdb.run"),
)
"""What a pickle may name to run code, to reach the network or to change files."""


def _calls() -> Iterator[tuple[str, bytes]]:
    """Pickles that ask for a call, in every way and every place that the language has."""
    for module, function in _FUNCTIONS:
        yield f"calls {module}.{function}", beside(call(name(module, function), text(MARKER)))
    system, command = name("posix", "system"), text(MARKER)
    run = call(system, command)
    size = call(name("builtins", "eval"), text("(8, 6)"))
    strided = row(number(6), number(1))
    rebuild, hooks = name("torch._utils", "_rebuild_tensor_v2"), call(name("builtins", "eval"))
    ways = {
        "as the whole object": archive(pickled(run)),
        "under a tensor's name": beside(run, "fc.extra"),
        "as a key": archive(pickled(mapping([*((text(k), v) for k, v in GOOD), (run, b"N")]))),
        "by INST": beside(b"(" + command + b"iposix\nsystem\n"),
        "by OBJ": beside(b"(" + system + command + b"o"),
        "by NEWOBJ": beside(system + row(command) + b"\x81"),
        "by NEWOBJ_EX": beside(system + row(command) + b"}\x92"),
        "by STACK_GLOBAL": beside(text("posix") + text("system") + b"\x93" + row(command) + b"R"),
        "by EXT1": beside(b"\x82\x01"),
        "by EXT2": beside(b"\x83\x01\0"),
        "by BUILD": beside(system + b")\x81" + mapping([(text("__class__"), text("x"))]) + b"b"),
        "as a shape": weight(
            call(rebuild, storage(0, 48), number(0), size, strided, b"\x89", b"}")
        ),
        "as hooks": weight(call(rebuild, storage(0, 48), number(0), size, strided, b"\x89", hooks)),
        "by a subclass": weight(
            call(
                name("torch._tensor", "_rebuild_from_type_v2"),
                system,
                name("torch", "Tensor"),
                row(command),
                b"}",
            )
        ),
        "of a called function": beside(call(call(name("builtins", "getattr"), command), command)),
        "in the old format, first": pickled(run) + b"x" * 100,
        "in the old format, for the system": old_format(system=pickled(run)),
        "in the old format, for the keys": old_format(keys=())[:-10] + pickled(run),
    }
    for way, content in ways.items():
        yield f"calls a function {way}", content


def _layouts() -> Iterator[tuple[str, bytes]]:
    """Tensors that do not fit their storage, and storages that do not fit the archive."""

    def of(
        count: int = 48,
        shape: tuple[int, ...] = (8, 6),
        steps: tuple[int, ...] = (6, 1),
        *,
        key: object = 0,
        kind: str = "FloatStorage",
        at: int = 0,
    ) -> bytes:
        return weight(tensor(storage(key, count, kind), shape, steps, at))

    yield from {
        "stride 0, far beyond": of(shape=(10**9, 6), steps=(0, 1), count=5),
        "a negative stride": of(steps=(-6, 1), at=42),
        "a negative offset": of(at=-1),
        "an offset beyond": of(at=1),
        "an offset of 2**62": of(at=2**62),
        "an offset of 2**64": of(at=2**64),
        "too few numbers": of(40),
        "too many numbers": of(4800),
        "2**63 numbers": of(2**63),
        "2**62 numbers": of(2**62),
        "-48 numbers": of(-48),
        "a negative shape": of(shape=(-8, -6)),
        "a shape of 2**62": of(shape=(2**62, 2**62, 0), steps=(1,) * 3),
        "one stride": of(steps=(6,)),
        "three strides": of(steps=(6, 1, 1)),
        "a longer shape": of(shape=(8, 7)),
        "65 sizes": of(shape=(1,) * 63 + (8, 6), steps=(48,) * 63 + (6, 1)),
        "a wider type": of(kind="DoubleStorage"),
        "an unknown type": of(kind="FooStorage"),
        "a quantised type": of(kind="QInt8Storage"),
        "a complex type": of(kind="ComplexDoubleStorage"),
        "a missing storage": of(key=9),
        "a storage outside": of(key="../data.pkl"),
        "an absolute storage": of(key="/etc/passwd"),
        "a storage without a name": of(key=""),
        "a storage of 1 MB of name": of(key="0" * 60_000),
        "a storage of another module": of(kind="os.FloatStorage"),
    }.items()
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    half = row(b"G" + struct.pack(">d", 8.0), number(6))
    steps = row(number(6), number(1))
    tail = (steps, b"\x89", b"}")
    odd = {
        "a shape of floats": (storage(0, 48), number(0), half, *tail),
        "a shape of booleans": (storage(0, 48), number(0), row(number(48), b"\x88"), *tail),
        "a shape of texts": (storage(0, 48), number(0), row(text("8"), text("6")), *tail),
        "no shape": (storage(0, 48), number(0)),
        "a text for a storage": (text("0"), number(0), steps, *tail),
        "an offset of text": (storage(0, 48), text("0"), row(number(8), number(6)), *tail),
        "requires_grad of text": (
            storage(0, 48),
            number(0),
            row(number(8), number(6)),
            steps,
            text("x"),
            b"}",
        ),
    }
    for what, arguments in odd.items():
        yield what, weight(call(rebuild, *arguments))
    identifiers = {
        "an id in an id": row(
            text("storage"), name("torch", "FloatStorage"), storage(1, 8), text("cpu"), number(48)
        ),
        "an id of a module": row(text("module"), name("posix", "system"), text("f"), text("s")),
        "an id of three": row(text("storage"), name("torch", "FloatStorage"), text("0")),
        "an id of no tuple": text("0"),
        "an id of an empty tuple": b")",
    }
    for what, identifier in identifiers.items():
        yield what, weight(tensor(identifier + b"Q", (8, 6), (6, 1)))
    yield "an id of text", weight(tensor(b"P0\n", (8, 6), (6, 1)))
    twice = ("norm.weight", tensor(storage(0, 96, "HalfStorage"), (6,), (1,)))
    yield "two types of one storage", saved([*GOOD[:2], twice])
    yield "two types of one storage, the other first", saved([twice, *GOOD[:2]])
    meta = {key: mapping([(text(key), b"\x88")]) for key in ("neg", "conj")}
    for key, value in meta.items():
        yield f"the {key} bit", weight(tensor(storage(0, 48), (8, 6), (6, 1), 0, value))
    state = row(storage(3, 48), number(0), row(number(8), number(6)), steps) + b"b"
    parameter = call(name("torch._utils", "_rebuild_parameter"), GOOD[0][1], b"\x89", b"}")
    for what, value in (("a tensor", GOOD[0][1]), ("a parameter", parameter)):
        yield (
            f"{what} changed after it was made",
            saved(
                [("fc.weight", value + state), *GOOD[1:]],
                storages={**STORAGES, "3": numbers(48, 7)},
            ),
        )
    v2 = name("torch._utils", "_rebuild_parameter_with_state")
    for member in ("data", "real", "imag"):
        given = mapping([(text(member), GOOD[1][1])])
        yield f"sets {member} of a tensor", weight(call(v2, GOOD[0][1], b"\x89", b"}", given))


def _structures() -> Iterator[tuple[str, bytes]]:
    """Objects that are no state dict, and pickles that are none."""
    one = GOOD[0][1]
    numbered = [(number(place), value) for place, (_, value) in enumerate(GOOD)]
    yield from {
        "a list": archive(pickled(b"](" + one + b"e")),
        "a tensor": archive(pickled(one)),
        "a number": archive(pickled(number(5))),
        "None": archive(pickled(b"N")),
        "an empty dict": archive(pickled(b"}")),
        "numbers for names": archive(pickled(mapping(numbered))),
        "half a character in a name": saved([*GOOD, ("fc.\ud800", GOOD[2][1])]),
        "only half a character": archive(state_dict([("\ud800", number(1))])),
        "a dict in itself": archive(
            pickled(b"}q\0(" + text("state_dict") + b"h\0" + text("x") + b"Nu")
        ),
        "a NUL in a name": saved([*GOOD, ("a\0b", GOOD[2][1])]),
        "a path for a name": saved([*GOOD, ("../x", GOOD[2][1])]),
        "100,001 parts of a name": saved([*GOOD, ("a." * 100_000 + "a", GOOD[2][1])]),
        "no name": saved([*GOOD, ("", GOOD[2][1])]),
        "a list as a key": archive(pickled(mapping([(b"]", b"N")]))),
        "tensors in a list": saved([*GOOD, ("more", b"](" + GOOD[2][1] + b"e")]),
        "a pickle of plain numbers": pickle.dumps({"fc.weight": [1.0] * 48}, 2),
        "two state dicts": archive(
            state_dict(
                [
                    ("a", mapping((text(k), v) for k, v in GOOD)),
                    ("b", mapping((text(k), v) for k, v in GOOD[:2])),
                ]
            )
        ),
        "an unknown opcode": beside(b"\xff"),
        "a memo that is not there": beside(b"h\xff"),
        "a mark for a value": beside(b"(0"),
        "nothing on the stack": archive(b"\x80\x02."),
        "no STOP": archive(state_dict(GOOD)[:-1]),
        "an empty pickle": archive(b""),
        "half a pickle": archive(state_dict(GOOD)[:100]),
        "a text that is cut": beside(b"X\xff\0\0\0ab"),
        "100,000 digits": beside(b"I" + b"9" * 50_000 + b"\n"),
        "digits of Python 2": beside(b"L" + b"9" * 50_000 + b"L\n"),
        "a wrong number": beside(b"Ix\n"),
        "a wrong float": beside(b"Fx\n"),
        "a long of -1 bytes": beside(b"\x8b\xff\xff\xff\xff"),
        "a call without a tuple": beside(name("collections", "OrderedDict") + b"NR"),
        "protocol 9": archive(b"\x80\x09N."),
        "an append to a number": beside(number(1) + b"Na"),
        "an item of a number": beside(number(1) + b"NNs"),
        "an odd number of items": beside(b"}(Nu"),
        "STACK_GLOBAL of numbers": beside(number(1) + number(2) + b"\x93"),
        "a buffer": beside(b"\x97"),
    }.items()


def _archives() -> Iterator[tuple[str, bytes]]:
    """Archives that are damaged, or that two readers read differently."""
    good = saved(GOOD)
    yield from {
        "cut at the end": good[:-30],
        "cut in the middle": good[:700],
        "the signature alone": b"PK\3\4",
        "deflated": saved(GOOD, method=zipfile.ZIP_DEFLATED),
        "a byte order with a line break": saved(GOOD, order=b"little\n"),
        "an entry twice": _twin("archive/data/0"),
        "an entry in upper case": _twin("archive/DATA/0"),
        "two pickles": saved(GOOD, extra=[("other/data.pkl", b"x")]),
        "no pickle": archive(b"", prefix="a/").replace(b"data.pkl", b"data.pkx"),
        "big-endian": saved(GOOD, order=b"big"),
        "no byte order": saved(GOOD, order=b""),
        "two archives": good + good,
        "an archive behind text": b"PK\3\4" + b"x" * 100 + good,
        "a program": saved(GOOD, extra=[("archive/code/x.py", b"")]),
        "constants": saved(GOOD, extra=[("archive/constants.pkl", b"")]),
        "another name at the place": _renamed(good),
        "a missing record at the end": good.replace(b"PK\5\6", b"PK\5\7"),
        "no version": saved(GOOD, version=False),
        "no folder": saved(GOOD, prefix=""),
        "an entry in another folder": _moved(good),
        **{f"a changed bit of {what}": _flipped(good, part) for what, part in _PARTS.items()},
    }.items()
    fields = {
        "an offset beyond": (42, 0x7FFFFFFF),
        "the offset of another entry": (42, 0),
        "another size": (24, 160),
        "both sizes beyond": (20, 0x7FFFFFF0),
        "another checksum": (16, 1),
        "a method of 99": (10, 99),
        "an encrypted entry": (8, 1),
        "a disk of 9": (34, 9),
    }
    for what, (place, value) in fields.items():
        yield f"a directory with {what}", _patched(good, b"archive/data/0", place, value)


_PARTS = {"a weight": WEIGHT, "a bias": BIAS, "the last tensor": NORM, "the pickle": b"norm.weight"}


def _twin(path: str) -> bytes:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(GOOD, extra=[(path, numbers(48, 99))])


def _moved(content: bytes) -> bytes:
    return content.replace(b"archive/byteorder", b"brchive/byteorder")


def _flipped(content: bytes, part: bytes) -> bytes:
    at = content.index(part) + len(part) // 2
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def _renamed(content: bytes) -> bytes:
    return content.replace(b"archive/data/0", b"archive/data/9", 1)


def _patched(content: bytes, path: bytes, place: int, value: int) -> bytes:
    """Return an archive with a field of an entry in its directory changed."""
    at = content.rindex(path) - 46
    size = 4 if place in {16, 20, 24, 42} else 2
    return content[: at + place] + value.to_bytes(size, "little") + content[at + place + size :]


def _old() -> Iterator[tuple[str, bytes]]:
    """Files of torch.save before torch 1.6."""
    good = old_format()
    view = row(text("v"), number(40), number(48))
    seen = tensor(storage(0, 48, "FloatStorage", view), (8, 6), (6, 1))
    other = ("x.weight", tensor(storage(0, 24, "FloatStorage", b"N"), (6,), (1,)))
    start = pickled(number(MAGIC)) + pickled(number(1001))
    yield from {
        "cut": good[:-8],
        "another number": old_format(blobs=[(47, WEIGHT), *BLOBS[1:]]),
        "a negative number": old_format(blobs=[(-48, WEIGHT), *BLOBS[1:]]),
        "a key less": old_format(keys=("0", "1"), blobs=BLOBS[:2]),
        "an unknown key": old_format(keys=("0", "1", "x")),
        "keys of no list": start
        + pickle.dumps({"little_endian": True}, 2)
        + state_dict(OLD)
        + pickled(number(5)),
        "big-endian": old_format(system=pickle.dumps({"little_endian": False}, 2)),
        "no system": old_format(system=pickled(b"N")),
        "protocol 1002": pickled(number(MAGIC)) + pickled(number(1002)),
        "another magic": pickled(number(MAGIC + 1)) + good[20:],
        "a view beyond": old_format([("fc.weight", seen), *OLD[1:]]),
        "one key, two numbers": old_format([*OLD, other]),
        "the start alone": start,
        "one byte": b"\x80",
    }.items()


def _bombs() -> Iterator[tuple[str, Callable[[], bytes], tuple[str, ...]]]:
    """Pickles and archives that ask for more work than their size explains."""
    many = b"](" + b"N" * 200_000 + b"eq\0"
    inner = many + b"".join(
        text(f"k{place}") + mapping([(text("l"), b"h\0"), (text("wv"[place % 2]), GOOD[2][1])])
        for place in range(5000)
    )
    yield (
        "5,000 dicts share a list",
        lambda: archive(pickled(b"}(" + text("zz") + inner + b"u")),
        ("input",),
    )
    copies = (
        b"]("
        + b"N" * 100_000
        + b"eq\0"
        + b"".join(
            text(f"k{place}")
            + call(
                name("collections", "OrderedDict"),
                b"}(" + b"".join(number(n) + b"N" for n in range(9)) + b"u",
            )
            for place in range(2)
        )
    )
    yield "few copies", lambda: archive(pickled(b"}(" + text("zz") + copies + b"u")), ("input",)
    items = b"".join(struct.pack("<ci", b"J", place) + b"N" for place in range(30_000))
    big = b"}(" + items + b"uq\0" + name("collections", "OrderedDict") + b"q\x010h\x010"
    calls = b"".join(text(f"k{place}") + b"h\x01h\0\x85R" for place in range(5000))
    yield (
        "5,000 copies of a dict",
        lambda: archive(
            pickled(b"}(" + text("zz") + big.replace(b"q\x010h\x010", b"q\x010") + calls + b"u")
        ),
        ("limit", "input"),
    )
    yield "5,000,000 opcodes", lambda: beside(b"N0" * 2_500_000 + b"N"), LIMIT
    yield "5,000,000 dicts", lambda: beside(b"(" + b"}" * 5_000_000 + b"l"), LIMIT
    yield "a memo of 500,000", lambda: _memo(500_000), LIMIT
    yield (
        "a number of 90 MB",
        lambda: beside(b"\x8b" + struct.pack("<i", 90_000_000) + b"\x7f" * 90_000_000),
        LIMIT,
    )
    yield (
        "a number of 5 MB as a key",
        lambda: archive(
            pickled(mapping([(b"\x8b" + struct.pack("<i", 5_000_000) + b"\x7f" * 5_000_000, b"N")]))
        ),
        LIMIT,
    )
    yield "a text of 2**62 bytes", lambda: beside(b"\x8d" + struct.pack("<Q", 2**62) + b"x"), LIMIT
    yield "a text of 2 GB", lambda: beside(b"X" + struct.pack("<I", 2**31) + b"x"), LIMIT
    yield "a wide text of 50 MB", lambda: beside(text("\U0001f600" + "x" * 50_000_000)), LIMIT
    yield (
        "40 wide texts",
        lambda: saved(
            [*GOOD, *((f"n{place}", text("\U0001f600" + "x" * 2_000_000)) for place in range(40))]
        ),
        LIMIT,
    )
    yield "a name of 50 MB", lambda: beside(b"c" + b"a" * 50_000_000 + b"\nb\n"), LIMIT
    yield (
        "bytes of 90 MB",
        lambda: beside(b"B" + struct.pack("<I", 90_000_000) + b"x" * 90_000_000),
        LIMIT,
    )
    yield (
        "300,000 entries",
        lambda: saved(GOOD, extra=((f"archive/data/x{place}", b"") for place in range(300_000))),
        LIMIT,
    )
    yield "200,000 names of one tensor", lambda: _names(200_000), LIMIT
    yield "a bomb of deflate", _deflated, ("input",)
    nested = name("torch._tensor", "_rebuild_from_type_v2")
    begin = nested + b"q\x010" + name("torch", "Tensor") + b"q\x020Nq\x040"
    chain = begin + (row(b"h\1", b"h\2", b"h\4", b"}") + b"q\x040") * 3000 + nested + b"h\4R"
    yield "3,000 rebuilders in each other", lambda: weight(chain), ("input",)


def _memo(count: int) -> bytes:
    return beside(
        b"N" + b"".join(b"r" + struct.pack("<I", place) + b"0N" for place in range(count))
    )


def _names(count: int) -> bytes:
    shared = b"".join(text(f"k{place}.w") + b"h\0" for place in range(count))
    return archive(pickled(b"}(" + text("fc.weight") + GOOD[0][1] + b"q\0" + shared + b"u"))


def _deflated() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        one = tensor(storage(0, 2**26), (2**13, 2**13), (2**13, 1))
        file.writestr("archive/data.pkl", state_dict([("fc.weight", one)]))
        file.writestr("archive/data/0", bytes(2**28), compress_type=zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _right() -> Iterator[tuple[str, bytes]]:
    """Files that look odd, which torch reads with the same values."""
    yield "stride 0", weight(tensor(storage(0, 48), (8, 6), (0, 1)))
    yield "strides that overlap", weight(tensor(storage(0, 48), (8, 6), (1, 1)))
    yield "a transposed weight", weight(tensor(storage(0, 48), (8, 6), (1, 8)))
    yield "one storage", saved([*GOOD[:2], ("norm.weight", tensor(storage(0, 48), (6,), (1,)))])
    yield "bytes behind the archive", saved(GOOD) + b"x" * 50
    yield "bytes behind the old format", old_format() + b"zzzz"
    yield "a list in itself", beside(b"]q\5h\5a")
    yield "100,000 lists in each other", beside(b"]" * 100_000 + b"a" * 99_999)
    yield "100,000 tuples in each other", beside(b")" + b"\x85" * 100_000)
    yield "half a character in a value", beside(text("\ud800"))
    yield "a name twice", saved([*GOOD, GOOD[0]])


def cases() -> list[Case]:
    """List the cases of this group."""
    groups = {
        "": _calls,
        "layout: ": _layouts,
        "object: ": _structures,
        "zip: ": _archives,
        "old: ": _old,
    }
    found = [
        Case(GROUP, f"{start}{what}", merging(content))
        for start, make in groups.items()
        for what, content in make()
    ]
    found += [Case(GROUP, f"bomb: {what}", _later(make), kinds) for what, make, kinds in _bombs()]
    found += [
        Case(GROUP, f"right: {what}", merging(content), (RIGHT,)) for what, content in _right()
    ]
    return found


def _later(make: Callable[[], bytes]) -> Callable[[Path], Callable[[], object]]:
    def prepare(folder: Path) -> Callable[[], object]:
        return merging(make())(folder)

    return prepare
