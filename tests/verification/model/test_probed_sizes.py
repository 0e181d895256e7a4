"""The sizes that were run are known, and short ones are named."""

import pytest

from lora_export.errors import UsageError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.records import InputSpec, Span
from lora_export.verification.model.probed_sizes import narrow_warnings, probed_sizes
from lora_export.verification.model.probes import make_probes

TEXT = parse_inputs(["ids=int64[batch,sequence]<9", "mask=int64[batch,sequence]", "x=float32[2]"])


def bounded(most, **span):
    spans = {"sequence": Span(most=most, **span)}
    return [InputSpec("ids", "int64", ("batch", "sequence"), 9, spans)]


def test_the_sizes_of_all_probes_are_listed_by_dimension():
    sizes = probed_sizes(TEXT, make_probes(TEXT, seed=0))
    assert sizes == {"batch": [1, 3], "sequence": [7, 19]}
    assert narrow_warnings(TEXT, sizes) == []


def test_a_sum_of_two_dimensions_is_none_itself():
    specs = [InputSpec("mask", "int64", ("batch", "past + sequence"), 2)]
    assert [*probed_sizes(specs, make_probes(specs, seed=0))] == ["batch"]


@pytest.mark.parametrize(
    ("most", "lengths"), [(6, [6, 4]), (5, [4, 3]), (4, [4, 3]), (3, [3, 1]), (2, [1]), (1, [1])]
)
def test_short_lengths_are_as_long_as_the_model_takes_and_named(most, lengths):
    specs = bounded(most)
    sizes = probed_sizes(specs, make_probes(specs, seed=0))
    assert sizes["sequence"] == lengths
    [warning] = narrow_warnings(specs, sizes)
    listed = " and ".join(map(str, sorted(lengths)))
    assert warning.startswith(f"'sequence' was proven at the sizes {listed} alone")
    assert warning.endswith(f"no more than {most}")


def test_the_only_probe_of_a_large_model_keeps_to_the_table():
    assert probed_sizes(bounded(2), make_probes(bounded(2), 0, few=3)) == {
        "batch": [3], "sequence": [1],
    }  # fmt: skip
    assert probed_sizes(TEXT, make_probes(TEXT, 0, few=3)) == {"batch": [3], "sequence": [3]}


def test_a_dimension_without_a_size_is_refused():
    with pytest.raises(UsageError, match="takes 4 of 'sequence' at most, and 9 at least"):
        make_probes(bounded(4, offset=8), seed=0)
