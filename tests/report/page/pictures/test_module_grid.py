from __future__ import annotations

import re

import pytest

from lora_export.report.page.pictures.heat_map import heat_map, size_words
from lora_export.report.page.pictures.module_grid import MOST_COLUMNS, MOST_KINDS, module_grid


def entry(update=1.0, weight=4.0):
    return {"update": update, "weight": weight}


@pytest.mark.parametrize(
    ("names", "kinds", "layers"),
    [
        (
            ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight",
             "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"],
            {"self_attn.q_proj": [0, 1], "mlp.up_proj": [0, 1]},
            [(0, 0), (1, 1)],
        ),
        (
            ["encoder.block.0.q.weight", "encoder.block.1.q.weight", "decoder.block.0.q.weight"],
            {"encoder.block: q": [0, 1], "decoder.block: q": [0]},
            [(0, 0), (1, 1)],
        ),
        (
            [f"m.layers.{layer}.experts.{one}.up.weight" for layer in (3, 5) for one in range(8)],
            {"experts.*.up": [0, 1]},
            [(3, 3), (5, 5)],
        ),
        (["h.0.attn.in_proj_weight", "h.10.attn.in_proj_weight"],
         {"attn.in_proj_weight": [0, 1]}, [(0, 0), (10, 10)]),
    ],
)  # fmt: skip
def test_modules_are_in_rows_by_kind_and_in_columns_by_layer(names, kinds, layers):
    grid = module_grid({name: entry() for name in names})
    assert {kind.name: [*kind.cells] for kind in grid.kinds} == kinds
    assert [*grid.layers] == layers
    assert sum(len(c.names) for k in grid.kinds for c in k.cells.values()) == len(names)
    assert grid.tensors == len(names)


def test_modules_without_a_layer_stand_beside_the_grid():
    names = ["h.0.q.weight", "h.1.q.weight", "lm_head.weight", "embed.weight"]
    grid = module_grid({name: entry() for name in names})
    assert [name for name, _ in grid.others] == ["lm_head", "embed"]


def test_layers_that_have_no_kind_in_common_are_no_grid():
    grid = module_grid({"0.weight": entry(), "2.conv.weight": entry(), "fc.weight": entry()})
    assert grid.kinds == ()
    assert sorted(name for name, _ in grid.others) == ["0", "2.conv", "fc"]


def test_a_cell_of_several_tensors_is_their_common_norm():
    sizes = {"h.0.e.0.w": entry(3.0, 6.0), "h.0.e.1.w": entry(4.0, 8.0), "h.1.e.0.w": entry()}
    [kind] = module_grid(sizes).kinds
    assert kind.cells[0].share == pytest.approx(5 / 10)


def test_a_zero_weight_is_no_fault():
    grid = module_grid({"a.weight": entry(1.0, 0.0), "b.weight": entry(0.0, 0.0)})
    assert [cell.share for _, cell in grid.others] == [float("inf"), 0.0]
    assert "\u221e" in heat_map(grid)


def test_a_deep_model_shares_columns_and_many_kinds_are_cut():
    sizes = {f"h.{n}.k{k}.w": entry(k + 1.0) for n in range(500) for k in range(40)}
    grid = module_grid(sizes)
    assert len(grid.layers) <= MOST_COLUMNS
    assert (grid.layers[0][0], grid.layers[-1][1]) == (0, 499)
    assert len(grid.kinds) == MOST_KINDS
    assert grid.left_out == 16
    assert {kind.name for kind in grid.kinds} == {f"k{k}.w" for k in range(16, 40)}


def test_the_map_has_a_colour_by_size_and_one_for_no_update():
    sizes = {f"h.{n}.q.weight": entry(2.0**n if n else 0.0, 1.0) for n in range(8)}
    page = heat_map(module_grid(sizes))
    cells = re.findall(r'<rect class="(\w+)" x="([\d.]+)%" width="12.5%" height="22"', page)
    assert [float(place) for _, place in cells] == [12.5 * n for n in range(8)]
    assert cells[0][0] == "none"
    steps = [int(kind[1:]) for kind, _ in cells[1:]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 6)
    assert "<title>layer 3: 800 %</title>" in page


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ([0.1, 0.2], "by the Frobenius norm. Each of 2 adapted tensors has one."),
        ([0.1, 0.1], "The updates are 10 % of their weights"),
        ([0.1, 0.0], "1 of 2 adapted tensors has no update: h.1.q.weight."),
        ([0.0, 0.0], "No update changes a weight: nothing was trained."),
    ],
)  # fmt: skip
def test_the_words_answer_whether_it_was_trained(updates, words):
    grid = module_grid({f"h.{n}.q.weight": entry(u, 1.0) for n, u in enumerate(updates)})
    assert words in size_words(grid)
