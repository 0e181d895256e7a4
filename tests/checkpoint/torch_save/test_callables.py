"""Which calls a pickle may name: all that honest trainers write, and none that does something."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import enum
import functools
import pathlib
import re
import types
import typing
import uuid
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lora_export.api import merge
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError

WEIGHTS = {"a.weight": torch.ones(2)}


class Kind(enum.Enum):
    ONE = "one"


class Member(enum.Enum):
    """An enumeration whose members are written as Python 3.11.0 to 3.11.3 writes all of them."""

    THREE = 3

    def __reduce_ex__(self, protocol):
        return getattr, (type(self), self._name_)


class Outer:
    class Inner(enum.Enum):
        TWO = 2

    class Deep(enum.Enum):
        FOUR = 4
        __reduce_ex__ = Member.__reduce_ex__


class Attributes(dict):
    """Like the dictionaries with attributes of Lightning, mmengine and yacs."""

    def __getattr__(self, name):
        return self[name]


class Reduced(dict):
    """Like mmengine's ConfigDict, which calls its class with a dictionary."""

    def __reduce_ex__(self, protocol):
        return type(self), (dict(self),)


class Pair(typing.NamedTuple):
    one: int = 1


@dataclass
class Settings:
    rate: float = 0.1
    kind: Kind = Kind.ONE


class History:
    """Like mmengine's HistoryBuffer, whose state names its own methods."""

    def smallest(self):
        raise NotImplementedError

    def __getstate__(self):
        return {"methods": {"smallest": History.smallest}, "log": np.ones(2)}


VALUES = {
    "namespace": argparse.Namespace(rate=1, path=pathlib.Path("a")),
    "simple namespace": types.SimpleNamespace(a=1),
    "numpy": [np.float32(1), np.ones(2), np.bool_(1), np.dtype("f4"), np.ma.ones(2), np.str_("a")],
    "numpy's states": [np.random.RandomState(0).get_state(), np.random.default_rng(0)],
    "containers": [
        collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), {1}, frozenset("a"),
        collections.Counter("aab"), collections.deque([1], 2), {(1, 2): 3},
    ],
    "numbers": [1j, decimal.Decimal("0.1"), slice(1), range(3), b"bytes", bytearray(b"a"), 10**30],
    "times": [dt.datetime.now(dt.timezone.utc), dt.timedelta(1)],
    "torch": [
        torch.Size([1]), torch.device("cpu"), torch.float16, torch.strided,
        torch.get_rng_state(), torch.nn.functional.relu,
    ],
    "others": [uuid.uuid4(), re.compile("a"), functools.partial(torch.optim.Adam, lr=0.1)],
    "types": [typing.Dict[str, int], int | None, list[int], typing.Any],  # noqa: UP006 - the old form is tested
    "tensors that no merge needs": [
        torch.eye(2).to_sparse(), torch.empty(2, device="meta"),
        torch.nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.complex128),
    ],
}  # fmt: skip
OBJECTS = {
    "enum": (Kind.ONE, ["Kind"]),
    "enum in a class": (Outer.Inner.TWO, ["Outer.Inner"]),
    "enum of Python 3.11.0": (Member.THREE, ["Member"]),
    "enum in a class, of Python 3.11.0": (Outer.Deep.FOUR, ["Outer.Deep"]),
    "mapping": (Attributes(a=1), ["Attributes"]),
    "mapping that calls": (Reduced(a=1), ["Reduced"]),
    "named tuple": (Pair(), ["Pair"]),
    "dataclass": (Settings(), ["Settings", "Kind"]),
    "state with methods": (History(), ["History"]),
    "module": (torch.nn.CrossEntropyLoss(), ["torch.nn.modules.loss.CrossEntropyLoss"]),
}
OPTIONS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy": {"_use_new_zipfile_serialization": False},
}
formats = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def read_beside_weights(value, tmp_path, options):
    torch.save({"state_dict": WEIGHTS, "extra": value}, tmp_path / "x.pt", **options)
    found = read_pickles(tmp_path / "x.pt")
    assert [ref.spec.name for ref in found.tensors] == ["a.weight"]
    return found.notes


@formats
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_known_values_beside_weights_are_passed_over(tmp_path, value, options):
    assert read_beside_weights(value, tmp_path, options) == ()


@formats
@pytest.mark.parametrize(("value", "classes"), OBJECTS.values(), ids=OBJECTS)
def test_objects_of_a_trainer_stay_closed_and_are_named(tmp_path, value, classes, options):
    (note,) = read_beside_weights(value, tmp_path, options)
    assert note.startswith("x.pt: objects of ")
    assert note.endswith(" were not opened")
    assert all(name in note for name in classes)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "a function of Python": (Calls(print, "a"), "builtins.print"),
    "a function of a package": (Calls(torch.load, "a"), "torch.serialization.load"),
    "a class of Python": (Calls(argparse.ArgumentParser, "a"), "argparse.ArgumentParser"),
    "an instance of Python": (types.SimpleNamespace(a=argparse.FileType()), "argparse.FileType"),
    "getattr of Python": (Calls(getattr, pathlib.PurePath, "joinpath"), "builtins.getattr"),
    "a method": ("a".upper, "builtins.getattr"),
    "getitem of no type": (Calls(__import__("operator").getitem, [1], 0), "_operator.getitem"),
    "type of three": (Calls(type, "a", (), {}), "builtins.type"),
}


@formats
@pytest.mark.parametrize(("value", "name"), CALLS.values(), ids=CALLS)
def test_any_other_call_is_refused_by_name(tmp_path, value, name, options):
    torch.save({"state_dict": WEIGHTS, "extra": [{"x": value}]}, tmp_path / "x.pt", **options)
    with pytest.raises(InputError, match=r"its pickle calls .*nothing of it was") as caught:
        read_pickles(tmp_path / "x.pt")
    (problem,) = caught.value.problems
    assert name in problem.message
    assert "['state_dict'], 'weights.pt')" in problem.hint


def test_many_calls_are_counted(tmp_path):
    names = ("abs", "all", "any", "ascii", "bin", "callable", "chr")
    calls = [Calls(__builtins__[name], 1) for name in names]
    torch.save({**WEIGHTS, "x": calls}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"builtins.bin and 2 more, which"):
        read_pickles(tmp_path / "x.pt")


def test_the_way_out_does_what_it_says(tmp_path):
    checkpoint = {"state_dict": WEIGHTS, "x": Calls(print, "a")}
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        read_pickles(tmp_path / "x.pt")
    code = caught.value.problems[0].hint.rpartition(": ")[2]
    names = {"torch": torch, "checkpoint": checkpoint}
    exec(code.replace("weights.pt", str(tmp_path / "weights.pt")), names)
    found = read_pickles(tmp_path / "weights.pt")
    assert [ref.spec.name for ref in found.tensors] == ["a.weight"]


def test_a_merge_tells_what_stayed_closed_in_base_and_adapter(tmp_path):
    torch.save({"model": {"a.weight": torch.ones(3, 4)}, "kind": Kind.ONE}, tmp_path / "b.pt")
    factors = {"a.lora_A": torch.ones(2, 4), "a.lora_B": torch.ones(3, 2)}
    torch.save({"state_dict": factors, "settings": Settings()}, tmp_path / "l.pt")
    report = merge(tmp_path / "b.pt", [tmp_path / "l.pt"], alpha=2, dry_run=True)
    told = [choice for choice in report.plan.choices if "were not opened" in choice]
    assert [one.partition(":")[0] for one in told] == ["b.pt", "l.pt"]
