"""Rows merged apart have the bits of the whole, in any number of threads."""

from dataclasses import replace

import loralib as lora
import pytest
import torch
from loralib_models import DTYPES, evaluated
from safetensors.torch import load_file, save_file

from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import StorageError
from lora_export.execution import arithmetic, rows, segments
from lora_export.execution.stage import write_plan
from lora_export.planning.request import make_request, plan_request
from lora_export.verification.weights import merged_rows
from lora_export.verification.weights.whole_weights import WeightProof

ALPHA = 6


class Model(torch.nn.Module):
    """Weights of several blocks each, of every kind that can be cut, and one that cannot."""

    def __init__(self):
        super().__init__()
        low = {"r": 4, "lora_alpha": ALPHA}
        blocks = {"enable_lora": [True, False, True], **low}
        self.linear = lora.Linear(96, 131, **low)
        self.turned = lora.Linear(131, 96, fan_in_fan_out=True, **low)
        self.table = lora.Embedding(197, 40, **low)
        self.conv = lora.Conv2d(16, 64, 3, groups=2, **low)
        self.fused = lora.MergedLinear(60, 96, **blocks)
        self.fused_turned = lora.MergedLinear(60, 96, fan_in_fan_out=True, **blocks)
        self.plain = torch.nn.Linear(7, 7)


@pytest.fixture(scope="module", params=DTYPES)
def case(request, tmp_path_factory):
    torch.manual_seed(0)
    model = Model().train()
    base, factors = DTYPES[request.param]
    for name, parameter in model.named_parameters():
        dtype = factors if "lora_" in name else base
        parameter.data = (torch.randn(parameter.shape) * 0.3).to(dtype)
    folder = tmp_path_factory.mktemp("blocks")
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file({k: v for k, v in state.items() if "lora_" not in k}, folder / "base.safetensors")
    save_file({k: v for k, v in state.items() if "lora_" in k}, folder / "lora.safetensors")
    request_ = make_request(
        folder / "base.safetensors",
        [folder / "lora.safetensors"],
        {"alpha": ALPHA, "enable_lora": "1,0,1"},
    )
    return plan_request(request_), evaluated(model)


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 5_000, arithmetic.BLOCK_BYTES])
def test_blocks_and_threads_leave_the_bits_alone(case, block, jobs, tmp_path, monkeypatch):
    plan, expected = case
    monkeypatch.setattr(arithmetic, "BLOCK_BYTES", block)
    monkeypatch.setattr(merged_rows, "SCREENED_ELEMENTS", block // 4)
    monkeypatch.setattr(merged_rows, "WIDE_ELEMENTS", block // 8)
    monkeypatch.setattr(segments, "CHUNK", 1000)
    proof = WeightProof(plan)
    path = tmp_path / "out.safetensors"
    (written,), digests = write_plan(
        plan, path, allow_noop=False, jobs=jobs, watcher=proof, digest_base=True
    )

    merged = load_file(path)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    checks = proof.checks(read_checkpoint(path).tensors(), allow_noop=False)
    assert all(check.passed for check in checks), checks

    from hashlib import sha256

    assert written.sha256 == sha256(path.read_bytes()).hexdigest()
    base = plan.base.shards[0].file
    assert digests == {base: sha256(base.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((511, 512), [511]),  # whole, with all of torch's threads
        ((512, 512), [256, 256]),
        ((100, 4096), [100]),
        ((2048, 2048), [512] * 4),
        ((1300, 2048), [512, 788]),
    ],
)
def test_blocks_are_large_and_large_matrices_are_cut(shape, rows, tmp_path):
    save_file({"fc.weight": torch.ones(shape).bfloat16()}, tmp_path / "base.safetensors")
    factors = {"fc.lora_A": torch.ones(2, shape[1]), "fc.lora_B": torch.ones(shape[0], 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    files = tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"]
    options = {"alpha": 2.0, "fan_in_fan_out": False}
    [step] = plan_request(make_request(*files, options)).steps()
    assert [stop - first for first, stop in arithmetic.row_blocks(step)] == rows


def test_what_is_read_whole_is_counted_in_the_memory(tmp_path):
    """Whose elements lie otherwise in the file can be merged by rows, but is read at once."""
    save_file({"fc.weight": torch.ones(2048, 1024)}, tmp_path / "base.safetensors")
    factors = {"fc.lora_A": torch.ones(2, 1024), "fc.lora_B": torch.ones(2048, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    files = tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"]
    plan = plan_request(make_request(*files, {"alpha": 2.0}))
    [shard] = plan.shards
    [step] = shard.steps
    turned = replace(step, source=replace(step.source, strides=(1, 2048)))
    other = replace(plan, shards=(replace(shard, steps=(turned,)),))
    more = arithmetic.memory_needed(other, 1) - arithmetic.memory_needed(plan, 1)
    assert more == 4 * step.out.nbytes


def test_an_error_in_a_thread_stops_all_and_is_told(case, tmp_path, monkeypatch):
    plan, _ = case

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(rows.Merge, "rows", broken)
    with pytest.raises(ZeroDivisionError):
        write_plan(plan, tmp_path / "out.safetensors", allow_noop=False, jobs=3)


def test_without_a_kernel_copy_the_bytes_are_the_same(case, tmp_path, monkeypatch):
    import os

    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    plan, _ = case
    write_plan(plan, tmp_path / "one.safetensors", allow_noop=False)
    monkeypatch.setattr(os, "copy_file_range", refused)
    write_plan(plan, tmp_path / "two.safetensors", allow_noop=False)
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_nothing_is_overwritten(case, tmp_path):
    plan, _ = case
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="cannot create"):
        write_plan(plan, path, allow_noop=False)
    assert path.read_bytes() == b"old"
