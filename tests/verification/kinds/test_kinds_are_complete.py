"""Every layer kind has three places: its merge, its proof, and a row in the tests' table."""

from pathlib import Path

import pytest
from kind_rows import ROWS, kind_of

from lora_export import layers
from lora_export.layers import all_kinds
from lora_export.verification import kinds
from lora_export.verification.kinds import all_proofs

ROOT = Path(__file__).resolve().parents[3]


def files_with(package, value):
    """Names of the files in a package's folder that make `value`."""
    folder = Path(package.__file__).parent
    return {path.stem for path in folder.glob("*.py") if f"\n{value} = " in path.read_text("utf-8")}


def test_every_kind_has_a_merge_a_proof_and_a_row():
    rows = {kind_of(case) for case in ROWS}
    assert files_with(layers, "KIND") == rows
    assert files_with(kinds, "PROOF") == rows


def test_every_file_is_found_by_walking_and_is_named_as_its_kind():
    assert set(all_kinds()) == files_with(layers, "KIND")
    assert set(all_proofs()) == files_with(kinds, "PROOF")


@pytest.mark.parametrize("kind", all_proofs())
def test_every_proof_has_an_independent_formula_and_a_live_branch(kind):
    proof = all_proofs()[kind]
    assert (proof.formula is None) != (proof.change is None)
    assert proof.tangent is None or proof.change is not None
    assert proof.sides is None or proof.formula is not None
    assert (proof.live_output is None) != (proof.live_parameter is None)
    assert (proof.formula is None) == (all_kinds()[kind].product is None)


def test_every_row_names_the_test_that_holds_the_merge_against_the_library():
    files = {row.oracle for row in ROWS.values() if isinstance(row.oracle, str)}
    assert [file for file in files if not (ROOT / file).is_file()] == []
