"""Hostile pickles: nothing runs, nothing grows, nothing hangs."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import struct
import zipfile

import pytest
import torch
from whole_run.steps import at_most

from lora_export.checkpoint.torch_save import inert, opcodes
from lora_export.checkpoint.torch_save.callables import Named
from lora_export.checkpoint.torch_save.containers import choose_state_dict
from lora_export.checkpoint.torch_save.inert import BoundedReader, Global, Opaque
from lora_export.checkpoint.torch_save.opcodes import read_pickle
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.checkpoint.torch_save.torch_rebuild import BUILDERS, VALUE_ATTRIBUTES
from lora_export.checkpoint.torch_save.torch_values import StorageTable, StoredTensor, make_storage
from lora_export.errors import InputError, LimitError


def read(content: bytes) -> object:
    reader = BoundedReader(io.BytesIO(content), inert.MAX_PICKLE_BYTES, "test")
    return read_pickle(reader, BUILDERS, make_storage, "test")


class Evil:
    """Runs a command when unpickled by anything else than us."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_commands(marker):
    yield Evil(os.system, f"touch {marker}")
    yield Evil(builtins.exec, f"open({str(marker)!r}, 'w')")
    yield Evil(builtins.eval, f"open({str(marker)!r}, 'w')")
    yield Evil(builtins.open, str(marker), "w")
    yield Evil(os.mkdir, str(marker))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(tmp_path, protocol):
    marker = tmp_path / "executed"
    for evil in evil_commands(marker):
        value = read(pickle.dumps({"weights": evil}, protocol))
        assert isinstance(value, dict)
        assert isinstance(value["weights"], Opaque)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_calls_something_is_refused_with_all_names(tmp_path, zipped):
    marker = tmp_path / "executed"
    path = tmp_path / "x.pt"
    state = {"a.weight": torch.ones(2)}
    evil = {f"evil{i}": one for i, one in enumerate(evil_commands(marker))}
    torch.save({"model": state, **evil}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        read_pickles(path)
    (problem,) = caught.value.problems
    for name in ("system", "builtins.exec", "builtins.eval", ".open", "mkdir"):
        assert name in problem.message
    assert problem.hint.endswith("torch.save(checkpoint['model'], 'weights.pt')")
    assert "torch.load" not in problem.hint  # whose advice is to run what the file names
    assert not marker.exists()


def test_items_of_a_closed_object_stay_closed():
    assert read(b"cbuiltins\nset\n)R(K\x01K\x02u.").name == "builtins.set"


def test_a_call_of_what_is_no_name_is_noted():
    named = Named()
    reader = BoundedReader(io.BytesIO(b"K\x01)R."), 100, "test")
    value = read_pickle(reader, BUILDERS, make_storage, "test", named)
    assert isinstance(value, Opaque)
    assert named.listed_calls() == "an unnamed object (int)"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
FACTS = b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n" + FACTS + b"tR"


def parameter(state: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_parameter_with_state\n(" + TENSOR + b"\x89}" + state + b"tR."


def attributes(state: bytes) -> bytes:
    name = b"ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
    return b"ctorch._tensor\n_rebuild_from_type_v2\n(" + name + FACTS + b"t" + state + b"tR."


def test_attributes_of_a_tensor_are_left_out():
    for state in (b"N", b"}", b"}" + text("note") + b"K\x01s", b"NN\x86"):
        assert isinstance(read(parameter(state)), StoredTensor)
        assert isinstance(read(attributes(state)), StoredTensor)


@pytest.mark.parametrize("name", sorted(VALUE_ATTRIBUTES))
def test_attributes_that_are_a_tensors_values_are_refused(name):
    state = b"}" + text(name) + TENSOR + b"s"
    for content in (parameter(state), attributes(state), parameter(b"N" + state + b"\x86")):
        with pytest.raises(InputError, match=f"sets '{name}' of a tensor"):
            read(content)


@pytest.mark.filterwarnings("ignore")
def test_every_attribute_of_torch_that_holds_values_is_known():
    """Found by setting each one; what replaces the values must be in our list."""
    found = set()
    for name, kind in vars(torch._C.TensorBase).items():
        if type(kind).__name__ == "getset_descriptor":
            for value in (torch.zeros(2), 1, True, None):
                tensor = torch.ones(2)
                with contextlib.suppress(Exception):
                    setattr(tensor, name, value)
                found |= set() if tensor.tolist() == [1, 1] else {name}
    assert found <= VALUE_ATTRIBUTES
    assert "data" in found


BITS = {
    "neg": ("negative", "resolve_neg"),
    "conj": ("conjugate", "resolve_conj"),
}


@pytest.mark.parametrize("value", [b"\x88", b"\x89"])
@pytest.mark.parametrize("key", sorted(BITS))
def test_a_bit_is_set_by_its_key_whatever_its_value(key, value):
    """As torch does it: {"neg": False} negates."""
    word, method = BITS[key]
    metadata = b"}" + text(key) + value + b"s"
    found = read(b"ctorch._utils\n_rebuild_tensor_v2\n" + FACTS + metadata + b"tR.")
    assert isinstance(found, Opaque)
    assert (found.name, found.tensor_like) == (f"a tensor whose {word} bit is set", True)
    assert found.hint == f"save tensor.{method}() instead"


def test_a_storage_of_two_dtypes_or_sizes_is_refused():
    for other in (STORAGE.replace(b"Float", b"Half"), STORAGE.replace(b"K\x04", b"K\x03")):
        reader = BoundedReader(io.BytesIO(STORAGE + other + b"\x86."), 1000, "test")
        with pytest.raises(InputError, match=r"'0' is named as 4 x F32 and as [34] x F"):
            read_pickle(reader, BUILDERS, StorageTable(facts=5).add, "test")


def test_rebuilders_inside_rebuilders_end():
    name = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    inner = b"(" + name + b"ctorch\nTensor\n)}t"
    found = read(name + b"(" + name + b"ctorch\nTensor\n" + inner + b"}tR.")
    assert isinstance(found, Opaque)


def test_strings_of_python_2_are_utf_8_or_bytes():
    assert read(b"U\x02\xc3\xa9.") == "é"
    assert read(b"U\x02\xff\xfe.") == b"\xff\xfe"


CHANGED = {
    "a tensor": TENSOR + b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85tb.",
    "a parameter": parameter(b"N")[:-1] + b"}b.",
    "a name": b"cos\nsystem\n}b.",
    "a plain mapping": b"}}b.",
    "a number": b"K\x01}b.",
}


@pytest.mark.parametrize("content", CHANGED.values(), ids=CHANGED)
def test_what_is_changed_after_it_was_made_is_refused(content):
    with pytest.raises(InputError, match="changes a value after it was made"):
        read(content)


def test_one_list_or_mapping_under_many_keys_is_looked_into_once(tmp_path):
    """Looked into for each key, these files would take minutes: the test would not end."""
    path = tmp_path / "x.pt"
    shared, mapping = [None] * 100_000, dict.fromkeys(range(20_000))
    torch.save({"a.weight": torch.ones(2), **{f"k{i}": shared for i in range(3000)}}, path)
    assert len(read_pickles(path).tensors) == 1
    torch.save({f"k{i}": mapping for i in range(10_000)}, path)
    with pytest.raises(InputError, match="holds no tensors"):
        read_pickles(path)


def tuple_bomb() -> bytes:
    """A dict whose key is a tuple of 2^60 leaves, that hashing would walk."""
    return b"}(K\x01K\x01\x86" + b"q\x00h\x00\x86" * 60 + b"K\x02u."


def list_bomb() -> bytes:
    return b"](K\x01K\x01e" + b"q\x000(h\x00h\x00l" * 60 + b"."


def test_shared_structures_cost_no_more_than_their_size(tmp_path):
    with at_most(200_000):
        (key,) = read(tuple_bomb())
        bomb = read(list_bomb())
        state = {"w.weight": 1, "x": bomb, "model": {"y": bomb, "model": bomb}}
        with pytest.raises(InputError, match="holds no tensors"):
            choose_state_dict(state, tmp_path)
    assert isinstance(key, Opaque)


def test_a_mapping_inside_itself_ends(tmp_path):
    loop: dict[object, object] = {"list": []}
    loop["model"] = loop
    loop["list"].append(loop)
    with pytest.raises(InputError, match="holds no tensors"):
        choose_state_dict(loop, tmp_path)


def test_a_huge_memo_index_takes_no_room():
    assert read(b"K\x01r\xff\xff\xff\xff.") == 1


BROKEN = {
    "empty": b"",
    "no stop": b"K\x01",
    "empty stack": b".",
    "no mark": b"K\x01t.",
    "memo unset": b"h\x05.",
    "unknown opcode": b"\xff.",
    "extension": b"\x82\x01.",
    "text persistent id": b"Pabc\n.",
    "odd items": b"}(K\x01u.",
    "foreign persistent id": b"X\x03\x00\x00\x00abcQ.",
    "short string": b"X\x05\x00\x00\x00ab.",
    "bad UTF-8": b"X\x01\x00\x00\x00\xff.",
    "huge decimal": b"I" + b"9" * 5000 + b"\n.",
    "class name a list": b"](\x8c\x01a]\x93.",
    "pairs of no mapping": b"ccollections\nOrderedDict\n](K\x01e\x85R.",
    "storage without facts": b"(X\x07\x00\x00\x00storagetQ.",
    "tensor without facts": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a mark as a value": b"}(K\x01s.",
    "a mark as the result": b"(.",
    "items of a number": b"K\x01(K\x01K\x02u.",
    "an item of a tuple": b")K\x01a.",
    "a list as a key": b"}]K\x01s.",
    "an instance of a number": b"K\x01)\x81.",
    "keys of no pairs": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "a counted list": b"ccollections\nCounter\n]\x85R.",
    "too many facts": b"ctorch._utils\n_rebuild_tensor\n(NNNNNtR.",
    "parameter without data": b"ctorch._utils\n_rebuild_parameter\n)R.",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_pickles_are_refused(content):
    with pytest.raises(InputError, match="broken pickle"):
        read(content)


def test_too_much_is_refused(monkeypatch):
    with pytest.raises(LimitError, match="more than 64,000,000 bytes"):
        read(b"\x8e" + struct.pack("<Q", 1 << 40) + b"ab.")
    monkeypatch.setattr(opcodes, "OPCODES", 100)
    with pytest.raises(LimitError, match="more work than the size of the file explains"):
        read(b"]" * 200 + b".")


def test_a_zip_with_a_huge_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_export.checkpoint.torch_save.torch_zip.MAX_PICKLE_BYTES", 10)
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(LimitError, match="at most 10 are read"):
        read_pickles(tmp_path / "x.pt")


VALUES = [
    None, True, False, 0, 255, 65535, -1, 2**31, 2**70, -(2**70), 1.5, "text", "ünï", b"bytes",
    b"x" * 300, [], [1, [2]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {1: None}},
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    values = [v for v in VALUES if protocol > 2 or not isinstance(v, bytes)]
    assert read(pickle.dumps(values, protocol)) == values
    assert read(pickle._dumps(values, protocol)) == values


def offset_beyond(numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
    storage = make_storage(("storage", Global("torch.FloatStorage"), "0", "cpu", numel))
    return BUILDERS["torch._utils._rebuild_tensor_v2"]((storage, offset, shape, strides, False, {}))


def test_tensors_beyond_their_storage_are_no_tensors():
    for arguments in [(4, 1, (4,), (1,)), (4, 0, (2, 2), (3, 1)), (0, 0, (), ())]:
        value = offset_beyond(*arguments)
        assert isinstance(value, Opaque)
        assert "beyond its storage" in value.name
    for arguments in [(4, -1, (1,), (1,)), (4, 0, (1,), ()), (4, 0, (2**40, 2**40), (0, 0))]:
        with pytest.raises(ValueError, match="size"):
            offset_beyond(*arguments)


def test_a_view_of_a_storage_as_torch_before_0_4_wrote_it():
    facts = ("storage", Global("torch.FloatStorage"), "7", "cpu", 10)
    storage = make_storage((*facts, ("8", 4, 6)))
    rebuild = BUILDERS["torch._utils._rebuild_tensor"]
    tensor = rebuild((storage, 1, (2, 2), (2, 1)))
    assert (tensor.storage.key, tensor.offset, tensor.span) == ("7", 20, 16)
    assert isinstance(rebuild((storage, 0, (7,), (1,))), Opaque)
    with pytest.raises(ValueError, match="beyond the end"):
        make_storage((*facts, ("8", 5, 6)))


def test_a_pickle_that_torch_did_not_write_is_named(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"a pickle, but none of torch\.save"):
        read_pickles(path)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match=r"has no data\.pkl"):
        read_pickles(tmp_path / "x.npz")
