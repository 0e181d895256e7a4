"""One reading of every update, or the missing fact by name."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from lora_export.layers import Shapes, all_kinds
from lora_export.planning.updates.readings import Unresolved
from lora_export.planning.updates.resolve_by_shape import resolve
from lora_export.records import Adapter, Delta, Facts, TensorRef, TensorSpec, Update


def resolved(a, b, weight, *, name="m.weight", has_bias=False, model="", **facts):
    factors = {
        role: TensorRef(TensorSpec(role, "F32", shape), Path("x"), 0, 0)
        for role, shape in (("A", a), ("B", b))
    }
    update = Update("m", factors)
    adapter = Adapter(Path("lora.pt"), "loralib", (update,), ())
    known = Facts(**{"alpha": 8, "source": "a test", **facts})
    spec = TensorSpec(name, "F32", weight)
    return resolve(adapter, update, "m", spec, known, has_bias=has_bias, model=model)


READ = [
    # (A, B, weight, facts) -> (kind, rank, fan_in_fan_out, enable_lora)
    (((2, 8), (12, 2), (12, 8), {}), ("linear", 2, False, ())),
    (((2, 8), (12, 2), (8, 12), {}), ("embedding", 2, False, ())),  # same update as (in, out)
    (((2, 8), (12, 2), (8, 12), {"has_bias": True}), ("linear", 2, True, ())),
    (((2, 8), (12, 2), (8, 12), {"fan_in_fan_out": True}), ("embedding", 2, False, ())),
    (((2, 8), (8, 2), (8, 8), {"fan_in_fan_out": False}), ("linear", 2, False, ())),
    (((2, 8), (8, 2), (8, 8), {"fan_in_fan_out": True, "has_bias": True}), ("linear", 2, True, ())),
    (((2, 8), (8, 2), (8, 8), {"kind": "embedding"}), ("embedding", 2, False, ())),
    (((2, 8), (8, 2), (8, 8), {"kind": "linear", "fan_in_fan_out": True}), ("linear", 2, True, ())),
    (
        ((4, 8), (16, 2), (24, 8), {"enable_lora": (True, False, True)}),
        ("merged_linear", 2, False, (True, False, True)),
    ),
    (
        ((4, 8), (16, 2), (8, 24), {"enable_lora": (False, True, True)}),
        ("merged_linear", 2, True, (False, True, True)),
    ),
    (((6, 8), (24, 2), (24, 8), {}), ("merged_linear", 2, False, (True, True, True))),
    (
        ((2, 8), (8, 2), (24, 8), {"enable_lora": (False, True, False)}),
        ("merged_linear", 2, False, (False, True, False)),
    ),
    (((2, 8), (12, 2), (12, 8), {"kind": "merged_linear"}), ("merged_linear", 2, False, (True,))),
    (((6, 9), (12, 6), (4, 3, 3, 3), {}), ("conv", 2, False, ())),
    (((6, 12), (6, 6), (4, 2, 3, 3), {}), ("conv", 2, False, ())),  # two groups
    (((2, 7), (9, 2), (9, 7, 1), {}), ("conv", 2, False, ())),
    (((2, 7), (9, 2), (9, 7, 1, 1, 1), {}), ("conv", 2, False, ())),
]


@pytest.mark.parametrize(("case", "expected"), READ)
def test_read(case, expected):
    a, b, weight, facts = case
    delta = resolved(a, b, weight, **facts)
    assert (delta.kind, delta.rank, delta.fan_in_fan_out, delta.enable_lora) == expected
    assert delta.scaling == 8 / delta.rank


MISSING = {
    "square": (((2, 8), (8, 2), (8, 8), {}), "--no-fan-in-fan-out"),
    "square, perhaps an embedding": (
        ((2, 8), (8, 2), (8, 8), {"fan_in_fan_out": False, "name": "tok_embeddings.weight"}),
        'kind = "embedding"',
    ),
    "blocks": (((4, 8), (16, 2), (24, 8), {}), "2 of 3 blocks"),
    "blocks of a square": (
        ((4, 24), (16, 2), (24, 24), {"enable_lora": (True, False, True)}),
        "--no-fan-in-fan-out",
    ),
    "other blocks": (((4, 8), (16, 2), (24, 8), {"enable_lora": (True, False)}), "does not fit"),
    "too many blocks": (
        ((4, 8), (16, 2), (24, 8), {"enable_lora": (True, True, True)}),
        "does not fit",
    ),
    "alpha": (((2, 8), (12, 2), (12, 8), {"alpha": None}), "alpha is not in the file"),
    "kind": (((2, 8), (12, 2), (12, 8), {"kind": "conv"}), "contradicts"),
    "rank": (((2, 8), (12, 2), (12, 8), {"rank": 3}), "rank is 2 in the file but 3"),
    "conv1d k=3": (((6, 21), (27, 6), (9, 7, 3), {}), "k = 1"),
    "conv2d k=(3, 5)": (((6, 9), (12, 6), (4, 3, 3, 5), {}), "fit no layer"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing(name):
    (a, b, weight, facts), words = MISSING[name]
    with pytest.raises(Unresolved) as caught:
        resolved(a, b, weight, **facts)
    assert words in str([*caught.value.missing, *caught.value.unfit])


ALL_MISSING = {
    "orientation": (((2, 8), (8, 2), (8, 8)), ["linear stored (in, out)", "alpha"]),
    "blocks": (((4, 8), (16, 2), (24, 8)), ["2 of 3 blocks", "alpha"]),
    "orientation and blocks": (((4, 24), (16, 2), (24, 24)), ["can be", "2 of 3 blocks", "alpha"]),
    "no layer": (((2, 8), (8, 2), (9, 9)), ["fit no layer", "alpha"]),
}


@pytest.mark.parametrize("name", ALL_MISSING)
def test_whatever_is_missing_of_a_module_is_told_at_once(name):
    shapes, words = ALL_MISSING[name]
    with pytest.raises(Unresolved) as caught:
        resolved(*shapes, alpha=None)
    told = [problem.message for problem in [*caught.value.unfit, *caught.value.missing]]
    assert len(told) == len(words)
    assert all(word in message for word, message in zip(words, told, strict=True)), told
    if name == "no layer":
        assert len(caught.value.unfit) == 1


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        (-16.0, "--weight -1 subtracts an adapter"),
        (0.0, "used in training"),
        (math.nan, "alpha = nan"),
    ],
)
def test_an_alpha_that_is_none(alpha, words):
    with pytest.raises(Unresolved) as caught:
        resolved((2, 8), (12, 2), (12, 8), alpha=alpha)
    assert words in str(caught.value.missing[0])


@pytest.mark.parametrize("shapes", [((2, 8), (12, 2), (12, 8)), ((4, 8), (16, 2), (24, 8))])
def test_a_model_that_was_named_is_not_asked_for_again(shapes):
    with pytest.raises(Unresolved) as caught:
        resolved(*shapes, alpha=None, model="net.py:plain")
    for problem in caught.value.missing:
        assert "net.py:plain has no loralib module there" in problem.hint
        assert "--model" not in problem.hint


@settings(max_examples=200)
@given(
    sizes=strategies.tuples(*[strategies.sampled_from([1, 2, 3, 4, 6, 8])] * 4),
    kernel=strategies.sampled_from([(), (1,), (2, 2), (3, 3), (1, 1, 1)]),
)
def test_whatever_a_kind_reads_it_can_multiply(sizes, kernel):
    """The product of any accepted reading has the shape of the weight."""
    import torch

    rank, inner, outer, groups = sizes
    k = kernel[-1] if kernel else 1
    a, b = (rank * k, inner * k), (outer * k, rank * k)
    weights = [(outer, inner, *kernel), (inner, outer, *kernel), (outer * groups, inner, *kernel)]
    for weight in weights:
        for kind in (kind for kind in all_kinds().values() if "loralib" in kind.tuners):
            for reading in kind.readings(Shapes({"A": a, "B": b}, weight)):
                enabled, blocks = reading.blocks or (1, 1)
                enable_lora = (True,) * enabled + (False,) * (blocks - enabled)
                refs = {
                    role: TensorRef(TensorSpec(role, "F32", shape), Path("x"), 0, 0)
                    for role, shape in (("A", a), ("B", b))
                }
                delta = Delta(
                    adapter="x",
                    module="m",
                    kind=kind.name,
                    factors=refs,
                    shape=weight,
                    rank=reading.rank,
                    alpha=1,
                    scaling=1.0,
                    fan_in_fan_out=reading.fan_in_fan_out,
                    enable_lora=enable_lora,
                )
                rows, columns = kind.matrix(delta)
                product = kind.product(delta, {"A": torch.ones(a), "B": torch.ones(b)}, 0, rows)
                assert tuple(product.shape) == (rows, columns)
                assert rows * columns == math.prod(weight)
