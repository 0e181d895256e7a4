from __future__ import annotations

import os
from argparse import Namespace

import pytest
import torch

from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError

W, V = torch.ones(2, 2), torch.zeros(2, 2)
STATE = {"a.weight": W, "a.bias": V}
OTHER = {"b.weight": V}
SCALAR = torch.tensor(0.5)

CHOSEN = {
    "bare": (STATE, ""),
    "bare, no dots": ({"w": W}, ""),
    **{
        key: ({key: STATE, "epoch": 1}, key)
        for key in (
            "model_state_dict", "state_dict", "model", "module", "net", "weights", "params",
        )
    },
    "nested": ({"model": {"state_dict": {"module": STATE}}}, "model.state_dict.module"),
    "known before unknown": ({"model": STATE, "discriminator": OTHER}, "model"),
    "known before ema": ({"ema": OTHER, "state_dict": STATE}, "state_dict"),
    "one unknown": ({"generator": STATE, "epoch": 3}, "generator"),
    "one unknown, deep": ({"a": {"b": {"c": STATE}}}, "a.b.c"),
    "unknown beside training state": (
        {
            "gen": STATE, "optimizer": {"state": {0: {"avg": W}}}, "lr_scheduler": {"x": W},
            "ema_1": OTHER,
        },
        "gen",
    ),
    "only ema": ({"ema": STATE}, "ema"),
    "loss beside wrapped weights": ({"model": STATE, "loss": SCALAR, "rng": W}, "model"),
    "same weights twice": ({"model": STATE, "state_dict": STATE}, "state_dict"),
    "optimizer beside bare weights": ({**STATE, "optimizer": {"state": {"x": W}}}, ""),
    "wrapper without tensors": ({"model": {"hidden": 3}, "gen": STATE}, "gen"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "wrapper"), CHOSEN.values(), ids=CHOSEN)
def test_the_state_dict_is_found(tmp_path, value, wrapper):
    torch.save(value, tmp_path / "x.pt")
    found = read_pickles(tmp_path / "x.pt")
    assert found.wrapper == wrapper
    expected = {"w"} if value == {"w": W} else STATE.keys()
    assert {ref.spec.name for ref in found.tensors} == set(expected)


class Foreign:
    def __reduce__(self):
        return (os.system, ("touch /tmp/never",))


REFUSED = {
    "a foreign call": (Foreign(), "calls (posix|nt).system, .*nothing of it was .*run"),
    "a foreign call and no tensors": (
        {"x": Foreign()},
        "calls (posix|nt).system, .*nothing of it was .*run",
    ),
    "a foreign object": (Namespace(), "holds one argparse.Namespace, .*nothing of it was .*run"),
    "a foreign object and no tensors": (
        {"x": Namespace()},
        "no tensors; its keys: x; it names argparse.Namespace: nothing of it was .*run",
    ),
    "two known": ({"model": STATE, "net": OTHER}, r"several state dicts.*model \(2\), net \(1\)"),
    "two unknown": ({"gen": STATE, "disc": OTHER}, r"gen \(2\), disc \(1\)"),
    "two unknown, deep": ({"a": {"gen": STATE, "disc": OTHER}}, r"a.gen \(2\), a.disc \(1\)"),
    "bare and wrapped": ({**OTHER, "model": STATE}, r"\(top level\) \(3\), model \(2\)"),
    "too deep": ({"a": {"b": {"c": {"d": {"e": STATE}}}}}, "holds no tensors; its keys: a"),
    "no tensors": ({"epoch": 1, "name": "x"}, "holds no tensors; its keys: epoch, name"),
    "empty": ({}, "holds no tensors; its keys: none"),
    "a tensor": (W, "holds one StoredTensor, not a state dict"),
    "a list": ([W, V], "holds one list, not a state dict"),
    "a number": (3, "holds one int"),
    "tensors lost beside tensors": ({**STATE, "sub": {"c": W}}, "1 more tensors lie in this dict"),
    "list of tensors": ({**STATE, "sub": [W, V]}, "2 more tensors lie in this list"),
}


@pytest.mark.parametrize(("value", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_meant_twice_or_not_at_all_is_refused(tmp_path, value, expected):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(InputError, match=expected) as caught:
        read_pickles(tmp_path / "x.pt")
    assert caught.value.problems[0].where.startswith(str(tmp_path / "x.pt"))
