from __future__ import annotations

import argparse
import pathlib
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from lora_export.checkpoint.tensors import read_tensor, tensor_bytes
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError

WHOLE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "dense": WHOLE,
    "transposed": WHOLE.t(),
    "sliced": WHOLE[1:3, 2:4],
    "stepped": WHOLE[::2, ::3],
    "row": WHOLE[2],
    "column": WHOLE[:, 1],
    "expanded": WHOLE[:1].expand(3, 6),
    "expanded.scalar": torch.tensor(7.0).expand(2, 2),
    "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    "channels.last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "size.one": WHOLE.reshape(4, 1, 6).transpose(0, 1),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "empty.view": WHOLE[4:],
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "frozen": torch.nn.Parameter(torch.ones(2, 2), requires_grad=False),
    "bfloat16": WHOLE.bfloat16(),
    "half": WHOLE.half(),
    "double": WHOLE.double(),
    "bool": WHOLE > 4,
    "complex": torch.ones(2, dtype=torch.complex64),
    **{
        str(d).removeprefix("torch."): torch.arange(4).to(d)
        for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32)
    },
    "float8_e4m3fn": WHOLE.to(torch.float8_e4m3fn),
    "float8_e5m2": WHOLE.to(torch.float8_e5m2)[1:],
}
FORMATS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy": {"_use_new_zipfile_serialization": False},
}
formats = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


def save(value: object, path: pathlib.Path, **options: object) -> pathlib.Path:
    torch.save(value, path, **options)
    return path


def assert_same(path: pathlib.Path, expected: dict[str, torch.Tensor]) -> None:
    found = read_pickles(path)
    assert [ref.spec.name for ref in found.tensors] == list(expected)
    for ref in found.tensors:
        theirs, ours = expected[ref.spec.name], read_tensor(ref)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), ref
        assert bytes(tensor_bytes(ours)) == bytes(tensor_bytes(theirs)), ref


@formats
def test_every_layout_and_dtype_as_torch_loads_it(tmp_path, options):
    # torch.load itself cannot read float8 in the old format with weights_only.
    path = save(TENSORS, tmp_path / "x.pt", **options)
    assert_same(path, TENSORS)


def test_agrees_with_torch_load(tmp_path):
    path = save(TENSORS, tmp_path / "x.pt")
    assert_same(path, torch.load(path, weights_only=True))


@formats
def test_a_state_dict_of_a_module(tmp_path, options):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = save(module.state_dict(), tmp_path / "x.pt", **options)
    assert_same(path, module.state_dict())
    assert read_pickles(path).wrapper == ""


@formats
def test_shared_storages_give_the_same_range(tmp_path, options):
    path = save({"a": WHOLE, "b": WHOLE, "c": WHOLE[1]}, tmp_path / "x.pt", **options)
    a, b, c = read_pickles(path).tensors
    assert (a.offset, a.length) == (b.offset, b.length)
    assert (c.offset, c.length, c.strides) == (a.offset + 24, 24, None)


@pytest.mark.parametrize("order", ["slices first", "whole first"])
def test_the_order_of_shared_legacy_storages_does_not_matter(tmp_path, order):
    items = [("a", WHOLE[2:]), ("b", WHOLE), ("c", torch.ones(3))]
    state = dict(items if order == "slices first" else items[::-1])
    path = save(state, tmp_path / "x.pt", **FORMATS["legacy"])
    assert_same(path, torch.load(path, weights_only=True))


def training_checkpoint() -> dict[str, object]:
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "args": argparse.Namespace(rate=1e-3, path=pathlib.PurePosixPath("a/b")),
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "rng_state": torch.get_rng_state(),
        "best": np.float64(0.25),
        "history": defaultdict(list, {"loss": [1.0, 0.5]}),
        "seen": {1, 2},
        "frozen": frozenset("ab"),
        "numbers": np.arange(3),
        "big": 10**30,
    }


@formats
def test_training_checkpoints_open_and_only_the_weights_are_taken(tmp_path, options):
    checkpoint = training_checkpoint()
    path = save(checkpoint, tmp_path / "x.pt", **options)
    assert_same(path, checkpoint["model_state_dict"])
    assert read_pickles(path).wrapper == "model_state_dict"


@formats
def test_plain_values_beside_tensors_become_metadata(tmp_path, options):
    state = {
        "weight": WHOLE, "epoch": 3, "name": "x", "rate": 0.5, "done": True, "none": None,
        "_extra_state": OrderedDict(), "list": [1], "huge": 10**5000,
        "module._extra_state": pathlib.PurePosixPath("a"), "args": argparse.Namespace(x=1),
    }  # fmt: skip
    found = read_pickles(save(state, tmp_path / "x.pt", **options))
    assert found.metadata == {"epoch": "3", "name": "x", "rate": "0.5", "done": "True"}
    assert [ref.spec.name for ref in found.tensors] == ["weight"]


def test_a_tensor_with_attributes_is_a_tensor(tmp_path):
    parameter = torch.nn.Parameter(WHOLE)
    parameter.note = "kept by torch, not by us"
    path = save({"weight": parameter}, tmp_path / "x.pt")
    assert_same(path, {"weight": parameter})


def test_the_real_loralib_file(shared_data):
    path = shared_data / "microsoft_lora" / "roberta_base_lora_mnli.bin"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    expected = torch.load(path, map_location="cpu", weights_only=True)
    assert_same(path, expected)
    assert len(expected) == 52


def sparse() -> torch.Tensor:
    return torch.eye(3).to_sparse()


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(WHOLE, 0.1, 0, torch.qint8)


FOREIGN = {
    "sparse": (sparse, "torch._utils._rebuild_sparse_tensor"),
    "quantised": (quantised, "torch._utils._rebuild_qtensor"),
    "meta": (lambda: torch.empty(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
    "complex128": (lambda: torch.ones(2, dtype=torch.complex128), "torch.ComplexDoubleStorage"),
    "numpy": (lambda: np.ones(3), "multiarray._reconstruct"),
    "path": (lambda: pathlib.PurePosixPath("a"), "pathlib.PurePosixPath"),
    "bits": (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "torch.bits8"),
}


@formats
@pytest.mark.parametrize(("make", "expected"), FOREIGN.values(), ids=FOREIGN)
def test_what_stands_for_a_tensor_and_is_none_is_named(tmp_path, make, expected, options):
    path = save({"a.weight": WHOLE, "b.weight": make()}, tmp_path / "x.pt", **options)
    with pytest.raises(InputError, match="not a plain dense tensor") as caught:
        read_pickles(path)
    (problem,) = caught.value.problems
    assert expected in problem.message
    assert problem.where == f"{path}: 'b.weight'"


class Marked(torch.Tensor):
    pass


def test_a_subclass_of_tensor_is_named(tmp_path):
    path = save({"a.weight": WHOLE.as_subclass(Marked)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="Marked, which cannot be merged"):
        read_pickles(path)


def test_all_problems_of_a_state_dict_are_told_at_once(tmp_path):
    state = {"a": WHOLE, "b.c": sparse(), 3: WHOLE, "../d": WHOLE, "e": {"f.g": WHOLE}, "": WHOLE}
    with pytest.raises(InputError) as caught:
        read_pickles(save(state, tmp_path / "x.pt"))
    assert len(caught.value.problems) == 5


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@formats
def test_a_whole_module_is_refused_with_the_remedy(tmp_path, options):
    with pytest.raises(InputError, match=r"whole pickled module \(.*Net\)") as caught:
        read_pickles(save(Net(), tmp_path / "x.pt", **options))
    assert "model.state_dict()" in caught.value.problems[0].hint


def test_light_reading_leaves_torch_and_numpy_alone(tmp_path, run_python):
    path = save(training_checkpoint(), tmp_path / "x.pt")
    run_python(
        "import sys; from pathlib import Path\n"
        "from lora_export.checkpoint import index\n"
        "from lora_export.checkpoint.folder import side_files\n"
        "from lora_export.checkpoint.output import publish, writer\n"
        "assert len(index.read_checkpoint(Path(sys.argv[1])).tensors()) == 2\n"
        "heavy = {'torch', 'numpy', 'safetensors'} & sys.modules.keys()\n"
        "assert not heavy, heavy",
        path,
    )
