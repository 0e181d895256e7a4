"""Wherever the head start stops, the pipeline goes on to the same bytes and digests."""

import subprocess
import sys
from hashlib import sha256
from itertools import count

import pytest
import torch
from safetensors.torch import save_file

from lora_export.errors import StorageError
from lora_export.execution import head_start, segments, stage
from lora_export.planning.request import make_request, plan_request
from lora_export.verification.weights.whole_weights import WeightProof


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A base of which one tensor of three is merged; pieces so small that there are many."""
    torch.manual_seed(0)
    monkeypatch.setattr(segments, "CHUNK", 100)
    monkeypatch.setattr(head_start, "CHUNK_BYTES", 64)
    names = ("first.weight", "fc.weight", "last.weight")
    save_file({name: torch.randn(8, 16) for name in names}, tmp_path / "base.safetensors")
    factors = {"fc.lora_A": torch.randn(2, 16), "fc.lora_B": torch.randn(8, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    return tmp_path


def written(files, monkeypatch, steps):
    """(content, what was told, digests) of a merge whose head start is stopped after `steps`."""
    request = make_request(files / "base.safetensors", [files / "lora.safetensors"], {"alpha": 2})
    plan = plan_request(request)
    left = count(steps, -1)

    class Stopping(head_start.HeadStart):
        def __enter__(self):
            self._stopped.is_set = lambda: next(left) <= 0
            self._run()
            return self

    monkeypatch.setattr(stage, "HeadStart", Stopping)
    proof = WeightProof(plan)
    path = files / f"out-{steps}.safetensors"
    (told,), digests = stage.write_plan(
        plan, path, allow_noop=False, jobs=2, watcher=proof, digest_base=True
    )
    assert not proof.different
    return path.read_bytes(), told.sha256, digests


def test_it_may_stop_anywhere(files, monkeypatch):
    expected, *_ = written(files, monkeypatch, 0)
    base = files / "base.safetensors"
    for steps in (1, 2, 3, 7, 12, 16, 20, 25, 30, 40, 1000):
        content, told, digests = written(files, monkeypatch, steps)
        assert content == expected
        assert told == sha256(content).hexdigest()
        assert digests[base] == sha256(base.read_bytes()).hexdigest()
    assert len(digests) == 2  # with time enough, the adapter as well


def test_its_error_is_told(files, monkeypatch):
    (files / "out-5.safetensors").write_bytes(b"old")
    with pytest.raises(StorageError, match="cannot create"):
        written(files, monkeypatch, 5)
    assert (files / "out-5.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_without_torch(files, jobs):
    """As it is run by users: torch is imported while the other thread copies."""
    output = files / f"by-{jobs}.safetensors"
    program = "import sys; from lora_export.cli import main; sys.argv[0] = 'lora-export'; main()"
    named = [files / "base.safetensors", files / "lora.safetensors", "-o", output]
    command = [sys.executable, "-c", program, "merge", *named, "--alpha", "2", "--jobs", str(jobs)]
    subprocess.run(command, check=True, capture_output=True)
    assert output.read_bytes()[-512:] == (files / "base.safetensors").read_bytes()[-512:]
