"""The bounds of PEFT's tuners beside LoRA: no computed update lies farther off, none is idle."""

from pathlib import Path

import pytest
import torch

from lora_export.layers import all_kinds
from lora_export.records import Delta, TensorRef, TensorSpec
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds import all_proofs
from lora_export.verification.kinds.proof_of_kind import one_product
from lora_export.verification.weights.rounding import update_error

SHAPES = {
    # kind: (factors of rank r, weight)
    "adalora": (lambda r: {"A": (r, 40), "B": (24, r), "E": (r, 1)}, (24, 40)),
    "loha": (
        lambda r: {"w1_a": (24, r), "w1_b": (r, 40), "w2_a": (24, r), "w2_b": (r, 40)},
        (24, 40),
    ),
    "loha of cores": (
        lambda r: {"w1_a": (r, 24), "w1_b": (r, 5), "w2_a": (r, 24), "w2_b": (r, 5),
                   "t1": (r, r, 2, 2), "t2": (r, r, 2, 2)},
        (24, 5, 2, 2),
    ),
    "lokr": (
        lambda r: {"w1_a": (4, r), "w1_b": (r, 5), "w2_a": (6, r), "w2_b": (r, 8)},
        (24, 40),
    ),
    "lokr of a core": (
        lambda r: {"w1_a": (4, r), "w1_b": (r, 5), "t2": (r, r, 3, 3), "w2_a": (r, 6),
                   "w2_b": (r, 2)},
        (24, 10, 3, 3),
    ),
    "lokr of a line": (lambda _: {"w1": (4, 5), "w2": (6, 2, 3)}, (24, 10, 3)),
    "vera": (
        lambda r: {"lambda_b": (24,), "lambda_d": (r,), "A": (r, 50), "B": (30, r)},
        (24, 40),
    ),
}  # fmt: skip


def delta_of(kind, factors, weight, rank):
    refs = {
        role: TensorRef(TensorSpec(role, "F32", shape), Path("x"), 0, 0)
        for role, shape in factors.items()
    }
    rule = {"adalora": "alpha / (rank + 1e-5)", "vera": "1"}.get(kind, "alpha / rank")
    shared = {"recipe": "peft", "rule": rule, "rank": rank, "alpha": 1.7, "shape": weight}
    return Delta("x", "m", kind, refs, scaling=1.7 / rank if rule != "1" else 1.0, **shared)


@pytest.mark.parametrize("rank", [1, 3, 64])
@pytest.mark.parametrize("case", SHAPES)
def test_an_update_in_float32_is_within_its_bound(case, rank):
    make, weight = SHAPES[case]
    kind = all_kinds()[case.split()[0]]
    delta = delta_of(kind.name, make(rank), weight, rank)
    torch.manual_seed(rank)
    for power in (1, 3, 0):  # of one size, of many sizes, and all of the same sign
        factors = {
            role: torch.randn(shape).pow(power) * (1.0 + torch.rand(shape))
            for role, shape in make(rank).items()
        }
        rows = torch.arange(weight[0])
        computed = kind.rows(delta, kind.prepare(delta, factors), 0, weight[0])
        computed = kind.scale(delta, computed)
        wide = {role: factor.double() for role, factor in factors.items()}
        sizes = {role: factor.abs() for role, factor in wide.items()}
        proof = all_proofs()[kind.name]
        exact = proof.update(delta, wide, rows) * scaling_of(delta)
        magnitude = proof.update(delta, sizes, rows) * scaling_of(delta)
        share, rest = update_error([delta], "F32", exact=False)
        error = (computed.double() - exact).abs() / (magnitude * share + rest)
        assert 0 < float(error.max()) < 1


def test_every_kind_that_is_no_plain_product_has_its_own_count():
    kinds = {case.split()[0] for case in SHAPES}
    assert kinds == {name for name, proof in all_proofs().items() if proof.roundings != one_product}


@pytest.mark.parametrize("held", ["", "BF16", "F16"])
@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 32) - 1, (1 << 32) + 5, (1 << 64) - 1])
def test_numpy_draws_the_projection_that_torch_draws(seed, held):
    from lora_export.layers import vera

    shapes = {"lambda_b": (24,), "lambda_d": (3,)}
    delta = delta_of("vera", shapes, (24, 40), 3)
    fields = {field: getattr(delta, field) for field in Delta.__slots__}
    delta = Delta(**{**fields, "projection": (seed, 300, 50), "held": held})
    ones = {role: torch.ones(shape, dtype=torch.float64) for role, shape in shapes.items()}
    drawn = all_proofs()["vera"].complete(delta, ones)
    prepared = vera.KIND.prepare(delta, ones)
    assert torch.equal(prepared["A"], drawn["A"][:, :40])
    assert torch.equal(prepared["B"], drawn["B"][:24])
