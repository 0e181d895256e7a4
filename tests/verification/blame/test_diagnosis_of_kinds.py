"""Every layer kind: a right merge has no cause, and the plainest mistakes are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kind_rows import ROWS, kind_of
from safetensors.torch import save_file

from lora_export.checkpoint.index import read_checkpoint
from lora_export.execution.arithmetic import matrix_of, read_factors
from lora_export.records import Step
from lora_export.verification.blame.diagnosis import sampled_rows
from lora_export.verification.blame.diagnosis.module_causes import find_cause
from lora_export.verification.kinds import all_proofs

RANK = 3
NOT_MERGED = {"token_rows": "token-rows-not-written", "lora_bias": "bias-not-added"}


class Made:
    """A step of one kind with its tensors on disk."""

    def __init__(self, case, folder, *, dtype=torch.float32):
        torch.manual_seed(3)
        row = ROWS[case]
        delta = row.delta(kind_of(case), RANK)
        factors = {role: torch.randn(ref.spec.shape) for role, ref in delta.factors.items()}
        self.folder = folder
        self.base = torch.randn(row.weight).to(dtype)
        refs = {role: self.save(role, factor) for role, factor in factors.items()}
        source = self.save("m.weight", self.base)
        delta = replace(delta, factors=refs, dtype=source.spec.dtype)
        self.step = Step(source.spec, "merge", source, (delta,))

    def save(self, name, tensor):
        path = self.folder / f"{len(list(self.folder.iterdir()))}.safetensors"
        save_file({name: tensor.contiguous()}, path)
        return read_checkpoint(path).tensors()[name]

    def merged(self, base):
        rows, columns = matrix_of(self.step)
        matrix = base.reshape(rows, columns).clone()
        return read_factors(self.step, "auto").rows(matrix, 0, rows).reshape(base.shape)

    def cause(self, tensor):
        return find_cause(self.step, "auto", self.save("m.weight", tensor))


@pytest.fixture
def made(request, tmp_path):
    return Made(request.param, tmp_path)


every_kind = pytest.mark.parametrize("made", ROWS, indirect=True)
FORMULAS = [case for case in ROWS if all_proofs()[kind_of(case)].formula]
CHANGES = [c for c in ROWS if all_proofs()[kind_of(c)].change and kind_of(c) != "token_rows"]


@every_kind
def test_a_right_merge_has_no_cause(made):
    assert made.cause(made.merged(made.base)).code == ""


@every_kind
def test_a_base_that_was_not_merged(made):
    kind = made.step.deltas[0].kind
    assert made.cause(made.base).code == NOT_MERGED.get(kind, "not-merged")


@pytest.mark.parametrize("made", FORMULAS, indirect=True)
@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_a_product_with_a_factor(factor, made):
    update = made.merged(made.base) - made.base
    cause = made.cause(made.base + factor * update)
    assert cause.code == "wrong-factor"
    assert cause.wrong[0].factor == pytest.approx(factor, abs=1e-3)


@pytest.mark.parametrize("made", CHANGES, indirect=True)
def test_a_change_that_was_made_twice(made):
    cause = made.cause(made.merged(made.merged(made.base)))
    if made.step.deltas[0].kind == "attention_out":  # its update is the same for every weight
        assert cause.wrong[0].factor == pytest.approx(2, abs=1e-3)
    else:
        assert cause.code == "merged-twice"


@every_kind
def test_another_weight(made):
    cause = made.cause(torch.randn(made.base.shape))
    assert cause.code in ("other-change", "other-adapter")


@pytest.mark.parametrize("case", ["linear", "embedding"])
def test_of_a_large_tensor_a_bounded_sample_is_read(case, tmp_path, monkeypatch):
    """A table of a hundred thousand rows must not be read whole to word a failure."""
    monkeypatch.setattr(sampled_rows, "ELEMENTS", 64)
    monkeypatch.setattr(sampled_rows, "LEAST_ROWS", 4)
    read = []
    whole = sampled_rows.read_tensor
    monkeypatch.setattr(
        sampled_rows, "read_tensor", lambda ref: read.append(ref.spec.elements) or whole(ref)
    )
    made = Made(case, tmp_path)
    columns = matrix_of(made.step)[1]
    sampled = sampled_rows.sample_step(made.step, made.step.source)
    assert len(sampled.numbers) == max(4, 64 // columns)
    assert max(read) == columns
    assert sampled.numbers.tolist()[-1] == matrix_of(made.step)[0] - 1
