from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.errors import InputError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.models.inputs.static_sizes import with_static
from lora_export.records import InputSpec, Span, example_sizes
from lora_export.verification.model.probes import (
    load_probes,
    make_probes,
    split_batch,
)

TEXT = parse_inputs(
    [
        "input_ids=int64[batch,sequence]<30522",
        "attention_mask=int64[batch,sequence]<2",
        "token_type_ids=int64[batch,sequence]<2",
    ]
)


def test_probes_are_of_other_sizes_than_the_traced_ones():
    traced = example_sizes(TEXT)
    assert min(traced.values()) >= 2
    assert len(set(traced.values())) == len(traced)
    one, three = make_probes(TEXT, seed=0)
    assert [probe["input_ids"].shape[0] for probe in (one, three)] == [1, 3]
    lengths = {probe["input_ids"].shape[1] for probe in (one, three)}
    assert len(lengths) == 2
    assert all(length % 2 for length in lengths)
    assert not lengths & set(traced.values())


def test_probes_are_seeded():
    same = [make_probes(TEXT, seed=4) for _ in range(2)]
    other = make_probes(TEXT, seed=5)
    for left, right, changed in zip(*same, other, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in left)
        assert not np.array_equal(left["input_ids"], changed["input_ids"])


@given(st.integers(0, 2**32), st.sampled_from(["int64", "int32", "bool"]))
def test_masks_are_padded_on_the_right_and_never_empty(seed, dtype):
    specs = parse_inputs([f"mask={dtype}[batch,sequence]", f"other_mask={dtype}[batch,sequence]"])
    for probe in make_probes(specs, seed):
        mask = probe["mask"]
        assert mask.dtype == dtype
        lengths = mask.astype(int).sum(axis=1)
        assert lengths[0] == mask.shape[1]
        assert lengths.min() >= 1
        assert np.array_equal(mask.astype(bool), np.arange(mask.shape[1]) < lengths[:, None])
        assert np.array_equal(mask, probe["other_mask"])


@pytest.mark.parametrize("sizes", [{"batch": 1}, {"batch": 1, "sequence": 8}])
def test_a_text_that_is_always_alone_is_padded_too(sizes):
    full, padded = make_probes(with_static(TEXT, sizes), seed=0)
    assert full["attention_mask"].all()
    assert 0 < padded["attention_mask"].sum() < padded["attention_mask"].size
    [only] = make_probes(with_static(TEXT, sizes), seed=0, few=3)
    assert 0 < only["attention_mask"].sum() < only["attention_mask"].size


def test_a_mask_of_a_fixed_length_leaves_the_least_that_a_model_takes():
    span = {"samples": Span(offset=400, unit=10)}
    sound = (
        InputSpec("input_values", "float32", ("batch", "samples"), spans=span),
        InputSpec("attention_mask", "int64", ("batch", "samples"), 2, span),
    )
    for seed in range(9):
        for probe in make_probes(with_static(sound, {"samples": 500}), seed):
            assert probe["attention_mask"].sum(axis=1).min() >= 410


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_integers_stay_below_their_bound(seed, high):
    for probe in make_probes(parse_inputs([f"ids=int64[batch,n]<{high}"]), seed):
        assert probe["ids"].dtype == np.int64
        assert probe["ids"].min() >= 0
        assert probe["ids"].max() < high


def test_other_inputs_are_filled_by_kind():
    specs = parse_inputs(["x=float16[batch,50]", "b=bool[batch,50]", "s=float64[]", "k=int64[40]",
                          "full_mask=int64[4]"])  # fmt: skip
    [_, probe] = make_probes(specs, seed=1)
    assert (probe["x"].dtype, probe["x"].shape) == (np.float16, (3, 50))
    assert 0.7 < probe["x"].astype(float).std() < 1.3
    assert set(probe["b"].ravel()) == {True, False}
    assert (probe["s"].dtype, probe["s"].shape) == (np.float64, ())
    assert set(probe["k"]) == {0, 1}
    assert probe["full_mask"].tolist() == [1, 1, 1, 1]


def test_sizes_without_a_batch_are_odd_too():
    probes = make_probes(parse_inputs(["x=float32[4]"]), seed=0)
    assert [probe["x"].shape for probe in probes] == [(4,), (4,)]
    probes = make_probes(parse_inputs(["x=float32[4,width]"]), seed=0)
    assert all(probe["x"].shape[1] % 2 for probe in probes)


def test_a_batch_is_split_into_its_samples():
    specs = parse_inputs(["ids=int64[batch,n]<9", "table=float32[2]"])
    [_, probe] = make_probes(specs, seed=0)
    parts = split_batch(specs, probe)
    assert [part["ids"].shape[0] for part in parts] == [1, 1, 1]
    assert np.array_equal(np.concatenate([part["ids"] for part in parts]), probe["ids"])
    assert all(part["table"] is probe["table"] for part in parts)
    assert split_batch(parse_inputs(["x=float32[4]"]), {"x": np.zeros(4)}) == []


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_the_users_own_inputs(tmp_path):
    specs = parse_inputs(["ids=int64[batch,n]<9", "x=float32[batch,2]"])
    ids, x = np.array([[1, 2, 8]]), np.zeros((1, 2), np.float32)
    [probe] = load_probes(write(tmp_path / "in.npz", ids=ids, x=x), specs)
    assert list(probe) == ["ids", "x"]
    assert np.array_equal(probe["ids"], ids)


def test_the_first_of_the_users_samples_is_a_probe_too(tmp_path):
    specs = parse_inputs(["ids=int64[batch,n]<9"])
    ids = np.array([[1, 2], [3, 4]])
    whole, alone = load_probes(write(tmp_path / "in.npz", ids=ids), specs)
    assert np.array_equal(whole["ids"], ids)
    assert np.array_equal(alone["ids"], ids[:1])


def test_sizes_keep_to_what_a_model_takes():
    spans = {"c": Span(most=6), "a": Span(most=14), "b": Span(offset=10, unit=7)}
    specs = [InputSpec("x", "float32", ("batch", *spans), spans=spans)]
    sizes = [dict(zip(("batch", *spans), p["x"].shape, strict=True)) for p in make_probes(specs, 0)]
    traced = example_sizes(specs)
    assert len(set(traced.values())) == len(traced)
    for table in (*sizes, traced):
        assert table["a"] <= 14
        assert table["c"] <= 6
        assert (table["b"] - 10) % 7 == 0
    assert all(table[name] != traced[name] for table in sizes for name in table)


def test_the_places_of_an_image_lead_every_row():
    specs = [InputSpec("ids", "int64", ("batch", "n"), 9, {"n": Span(offset=4)}, (8, 4))]
    for probe in make_probes(specs, seed=0, tokens=[7]):
        assert (probe["ids"][:, :4] == 8).all()
        assert (probe["ids"][:, 4:] != 8).all()
        assert (probe["ids"][:, 4::2] == 7).all()


def test_no_row_of_a_sound_is_shorter_than_one_step():
    spans = {"n": Span(unit=50)}
    specs = [InputSpec("mask", "int64", ("batch", "n"), 2, spans)]
    assert all((p["mask"].sum(axis=1) >= 50).all() for p in make_probes(specs, seed=0))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "inputs missing"),
        ({"more": np.zeros(2)}, "unknown: \\['more'\\]"),
        ({"ids": np.zeros((1, 3), np.int32)}, "has dtype int32, declared is int64"),
        ({"ids": np.zeros(3, np.int64)}, "has shape \\(3,\\), declared"),
        ({"ids": np.full((1, 3), 9)}, "outside \\[0, 9\\)"),
        ({"ids": np.full((1, 3), -1)}, "outside \\[0, 9\\)"),
        ({"ids": np.zeros((2, 3), np.int64)}, "dimension 'batch' must be 2"),
        ({"ids": np.zeros((1, 0), np.int64)}, "holds no element"),
        ({"x": np.zeros((1, 3), np.float32)}, "dimension 2 must be 2"),
        ({"x": np.array([[{}]], dtype=object)}, "cannot be read as an .npz archive"),
    ],
)
def test_inputs_that_do_not_fit_the_declaration_are_refused(tmp_path, arrays, match):
    specs = parse_inputs(["ids=int64[batch,n]<9", "x=float32[batch,2]"])
    good = {"ids": np.array([[1, 2]]), "x": np.zeros((1, 2), np.float32)}
    path = write(tmp_path / "in.npz", **({**good, **arrays} if arrays else {}))
    with pytest.raises(InputError, match=match):
        load_probes(path, specs)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as an"):
        load_probes(tmp_path / "in.npz", TEXT)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros(3))
    for path in (tmp_path / "in.npy", tmp_path / "missing.npz"):
        with pytest.raises(InputError, match="cannot be read as an"):
            load_probes(path, TEXT)


def test_more_rounds_give_more_rows_or_more_probes():
    assert [len(p["input_ids"]) for p in make_probes(TEXT, seed=0, rounds=5)] == [5, 15]
    probes = make_probes(parse_inputs(["x=float32[4]"]), seed=0, rounds=3)
    assert len(probes) == 6
    assert len({probe["x"].tobytes() for probe in probes}) == 6
