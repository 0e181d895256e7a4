"""The formula of every kind bounds its merge: no computed update lies farther off, none is idle."""

import pytest
import torch
from kind_rows import ROWS, kind_of

from lora_export.layers import Shapes, all_kinds
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds import all_proofs
from lora_export.verification.kinds.proof_of_kind import one_product
from lora_export.verification.weights.rounding import element_bound, update_error

PRODUCTS = [case for case in ROWS if all_proofs()[kind_of(case)].formula is not None]
CHANGES = [case for case in ROWS if all_proofs()[kind_of(case)].change is not None]
CUT = [
    case
    for case in CHANGES
    if all_kinds()[kind_of(case)].cuttable(ROWS[case].delta(kind_of(case), 3))
]


def drawn(row, rank):
    """Factors in float32: of one size, of many sizes, and all of the same sign."""
    torch.manual_seed(rank)
    for power in (1, 3, 0):
        yield {
            role: torch.randn(shape).pow(power) * (1.0 + torch.rand(shape))
            for role, shape in row.factors(rank).items()
        }


def test_every_row_is_a_product_or_a_change():
    assert sorted([*PRODUCTS, *CHANGES]) == sorted(ROWS)


@pytest.mark.parametrize("case", ROWS)
def test_every_row_is_read_as_its_kind(case):
    kind, row = all_kinds()[kind_of(case)], ROWS[case]
    readings = kind.readings(Shapes(row.factors(3), row.weight))
    turned = row.fields.get("fan_in_fan_out", False)
    assert (kind.name, turned) in {(found.kind, found.fan_in_fan_out) for found in readings}


@pytest.mark.parametrize("rank", [1, 3, 64])
@pytest.mark.parametrize("case", PRODUCTS)
def test_an_update_in_float32_is_within_its_bound(case, rank):
    kind, proof = all_kinds()[kind_of(case)], all_proofs()[kind_of(case)]
    delta = ROWS[case].delta(kind.name, rank)
    height = kind.matrix(delta)[0]
    for factors in drawn(ROWS[case], rank):
        rows = torch.arange(height)
        computed = kind.rows(delta, kind.prepare(delta, factors), 0, height)
        computed = kind.scale(delta, computed)
        wide = {role: factor.double() for role, factor in factors.items()}
        sizes = {role: factor.abs() for role, factor in wide.items()}
        exact = proof.update(delta, wide, rows) * scaling_of(delta)
        magnitude = proof.update(delta, sizes, rows) * scaling_of(delta)
        share, rest = update_error([delta], "F32", exact=False)
        error = (computed.double() - exact).abs() / (magnitude * share + rest)
        assert 0 < float(error.max()) < 1


@pytest.mark.parametrize("rank", [1, 3, 64])
@pytest.mark.parametrize("case", CHANGES)
def test_a_change_in_float32_is_within_its_bound(case, rank):
    kind, proof = all_kinds()[kind_of(case)], all_proofs()[kind_of(case)]
    delta = ROWS[case].delta(kind.name, rank)
    height, width = kind.matrix(delta)
    for factors in drawn(ROWS[case], rank):
        base = torch.randn(height, width)
        changed = kind.change(delta, kind.prepare(delta, factors), base, 0, height).double()
        wide = {role: factor.double() for role, factor in factors.items()}
        rows = torch.arange(height)
        update, magnitude = proof.change(delta, wide, scaling_of(delta), base.double(), rows)
        exact = base.double() + update
        share, rest = update_error([delta], "F32", exact=False)
        bound = element_bound(exact, magnitude * share + rest, "F32")
        assert float(((changed - exact).abs() / bound).max()) < 1
        assert not torch.equal(changed, base.double())
        half = base.double() + update / 2  # a bound that lets this pass would show nothing
        assert float(((changed - half).abs() / bound).max()) > 1


@pytest.mark.parametrize("case", PRODUCTS)
def test_rows_of_an_update_are_those_of_the_whole(case):
    kind, proof = all_kinds()[kind_of(case)], all_proofs()[kind_of(case)]
    delta = ROWS[case].delta(kind.name, 3)
    factors = {role: factor.double() for role, factor in next(drawn(ROWS[case], 3)).items()}
    rows = torch.arange(kind.matrix(delta)[0])
    whole = proof.update(delta, factors, rows)
    torch.testing.assert_close(proof.update(delta, factors, rows[5:17]), whole[5:17])


@pytest.mark.parametrize("case", CUT)
def test_rows_of_a_change_are_those_of_the_whole(case):
    kind, proof = all_kinds()[kind_of(case)], all_proofs()[kind_of(case)]
    delta = ROWS[case].delta(kind.name, 3)
    factors = {role: factor.double() for role, factor in next(drawn(ROWS[case], 3)).items()}
    height, width = kind.matrix(delta)
    base, rows = torch.randn(height, width, dtype=torch.float64), torch.arange(height)
    whole = proof.change(delta, factors, scaling_of(delta), base, rows)
    few = proof.change(delta, factors, scaling_of(delta), base[5:17], rows[5:17])
    torch.testing.assert_close(few, tuple(part[5:17] for part in whole))


def test_every_kind_that_is_no_plain_product_has_its_own_count():
    kinds = all_kinds().values()
    several = {kind.name for kind in kinds if kind.product and len(kind.roles) != 1}
    plain = {kind.name for kind in kinds if kind.roles == ("A", "B")}
    proofs = all_proofs()
    assert several - plain == {name for name in proofs if proofs[name].roundings != one_product}
