"""In whose names an adapter's modules are found: the base's first, then the running model's."""

from pathlib import Path

import pytest

from lora_export.planning.names import base_names
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.names.locating import Part, Space, find_space, homes_of, renamed_tensors
from lora_export.planning.prefix_change import PrefixChange
from lora_export.planning.updates.parameter_updates import settle
from lora_export.records import NameTable, Place, TensorRef, TensorSpec, Terms, Update


def ref(name, *shape):
    return TensorRef(TensorSpec(name, "F32", shape), Path("x"), 0, 0)


def table(shapes, **places):
    """A table that knows `places`, by stored name with dots as double underscores."""
    known = {name.replace("__", "."): place for name, place in places.items()}
    return NameTable("a test", shapes, lambda names: {n: known.get(n, Place(n)) for n in names})


STORED = {
    name: ref(name, *shape)
    for name, shape in {
        "old.a.weight": (4, 4),
        "old.b.weight": (4, 4),
        **{f"experts.{e}.{leaf}.weight": (3, 4) for e in (0, 1) for leaf in ("w1", "w3")},
    }.items()
}
SHAPES = {"model.new.a.weight": (4, 4), "model.new.b.weight": (4, 4), "experts.up": (2, 6, 4)}
TABLE = table(
    SHAPES,
    old__a__weight=Place("model.new.a.weight"),
    old__b__weight=Place("model.new.b.weight"),
    **{
        f"experts__{e}__{leaf}__weight": Place("experts.up", e, (part, 2))
        for e in (0, 1)
        for part, leaf in enumerate(("w1", "w3"))
    },
)


def find(*modules, known=TABLE, stored=STORED, only=None):
    wanted = {module: ["up"] if module == "experts" else ["weight"] for module in modules}
    return find_space(wanted, Space(BaseNames(stored), stored), lambda: known, only)


def refused():
    raise AssertionError("the table was asked for")


RENAMED = table({"a.weight": (4, 4), "n.scale": (4,)}, n__old=Place("n.scale"))
KEPT = {"a.weight": ref("a.weight", 4, 4), "n.old": ref("n.old", 4)}


@pytest.mark.parametrize(
    ("names", "change", "known", "found"),
    [
        (["n.scale", "head.weight"], PrefixChange("", ""), RENAMED, {"n.scale": "n.old"}),
        (["m.n.scale", "n.scale"], PrefixChange("m.", ""), RENAMED, {"m.n.scale": "n.old"}),
        (["n.scale"], PrefixChange("", ""), None, {}),
        (["n.scale"], PrefixChange("x.", ""), RENAMED, {}),
        (["experts.0.w1.weight"], PrefixChange("", ""), TABLE, {}),
    ],
)
def test_a_full_tensor_may_have_the_running_models_name_alone(names, change, known, found):
    space = Space(BaseNames(KEPT), KEPT, change)
    assert renamed_tensors(names, space, lambda: known) == found


def test_the_table_is_not_asked_for_without_need():
    assert renamed_tensors([], Space(BaseNames(KEPT), KEPT), refused) == {}


@pytest.mark.parametrize(("module", "words"), [("old.a", []), ("x.old.a", ["prefix x. -> (none)"])])
def test_the_bases_own_names_come_first_and_need_no_table(module, words):
    stored = Space(BaseNames(STORED), STORED)
    space, told, problems = find_space({module: ["weight"]}, stored, refused)
    assert not problems
    assert [text.split(",")[0] for text in told] == words
    assert space.locate(module, "weight").tensors == ("old.a.weight",)


def test_the_running_models_names_find_what_is_stored_under_others():
    space, [told], problems = find("model.new.a", "model.new.b", "experts")
    assert not problems
    assert "a test" in told
    located = space.locate("model.new.a", "weight")
    assert (located.module, located.tensors) == ("old.a", ("old.a.weight",))
    assert space.full_tensor("model.new.b.weight") == "old.b.weight"


def test_a_level_is_lacking_of_all_modules_or_of_none():
    _, _, problems = find("new.a", "new.b", "experts")
    assert [p.where for p in problems] == ["new.b", "experts"] or "0 of 3" in problems[0].message


def test_a_level_that_the_adapter_lacks_is_one_change_of_prefix():
    space, [told], problems = find("new.a", "new.b")
    assert not problems
    assert "prefix (none) -> model." in told
    assert space.locate("new.b", "weight").tensors == ("old.b.weight",)


def test_an_adapter_with_older_names_is_translated():
    stored = {name: ref(name, 4, 4) for name in ("model.new.a.weight", "model.new.b.weight")}
    space, _, problems = find("old.a", "old.b", stored=stored)
    assert not problems
    assert space.locate("old.a", "weight").tensors == ("model.new.a.weight",)


def test_experts_stored_one_by_one_are_parts_of_the_models_stack():
    space, _, problems = find("experts", "model.new.a")
    assert not problems
    located = space.locate("experts", "up")
    assert located.shape == (2, 6, 4)
    assert located.parts == (
        Part("experts.0.w1.weight", 0),
        Part("experts.0.w3.weight", 3),
        Part("experts.1.w1.weight", 6),
        Part("experts.1.w3.weight", 9),
    )
    assert space.full_tensor("experts.up") is None


@pytest.mark.parametrize(
    "stored",
    [
        {name: one for name, one in STORED.items() if name != "experts.1.w3.weight"},
        {**STORED, "experts.1.w3.weight": ref("experts.1.w3.weight", 2, 4)},
    ],
)
def test_experts_that_do_not_make_the_stack_are_an_obstacle(stored):
    assert "do not make [2, 6, 4]" in homes_of(TABLE, stored)["experts.up"].obstacle


def test_what_no_row_by_row_merge_can_follow_is_an_obstacle():
    known = table({"q.weight": (2, 4)}, qkv__weight=Place("q.weight", obstacle="Chunk(dim=0)"))
    homes = homes_of(known, {"qkv.weight": ref("qkv.weight", 6, 4)})
    assert "Chunk(dim=0)" in homes["q.weight"].obstacle


def test_one_module_that_no_table_knows_is_told_with_the_bases_names():
    _, _, [problem] = find("model.new.a", "model.new.c")[:3]
    assert "the base has no " in problem.message


def test_without_a_table_the_extra_is_named():
    wanted = {f"model.new.{name}": ["weight"] for name in "abcd"}
    base = Space(BaseNames(STORED), STORED)
    _, _, [problem] = find_space(wanted, base, lambda: None, advice="install it")
    assert "of 4 modules are not in this base by its own names" in problem.message
    assert problem.hint == "install it"


def test_the_users_own_change_of_prefix_counts_in_both_names():
    space, _, problems = find("x.new.a", only=PrefixChange("x.", "model."))
    assert not problems
    assert space.locate("x.new.a", "weight").tensors == ("old.a.weight",)
    _, _, problems = find("x.new.a", only=PrefixChange("y.", "model."))
    assert problems


# --- which parameter


def updates(*shapes, names=("up", "gate", "down")):
    """Updates of rank 1 of one module with three parameters, outermost first."""
    found = []
    for level, (out, inner) in enumerate(shapes):
        factors = {"A": ref("A", 2, inner), "B": ref("B", out, 2)}
        said = Terms("parameter", 1, 1)
        first, *others = (Update("m", factors, name, said) for name in names)
        found.append(Update("m", factors, first.parameter, said, tuple(others), level))
    return found


def settled(found, stored, known=None):
    space = Space(BaseNames(stored), stored)
    chosen, problems = settle(found, space, lambda: known)
    return {one.update.level: one.update.parameter for one in chosen}, problems


DIFFERENT = {"m.up": ref("m.up", 2, 6, 4), "m.down": ref("m.down", 2, 4, 3)}
ALIKE = {name: ref(name, 2, 6, 4) for name in ("m.gate", "m.up")} | {"m.down": ref("", 2, 4, 6)}


def test_shapes_tell_the_parameters_whatever_the_order():
    assert settled(updates((6, 4), (4, 3)), DIFFERENT) == ({0: "up", 1: "down"}, [])
    assert settled(updates((4, 3), (6, 4)), DIFFERENT) == ({0: "down", 1: "up"}, [])


def test_the_models_order_tells_parameters_of_one_shape():
    three = updates((4, 6), (6, 4), (6, 4))
    order = table({"m.gate": (2, 6, 4), "m.up": (2, 6, 4), "m.down": (2, 4, 6)})
    assert settled(three, ALIKE, order) == ({0: "down", 1: "up", 2: "gate"}, [])
    _, [problem] = settled(three, ALIKE)
    assert "does not show which of" in problem.message


def test_a_layer_too_many_is_refused():
    _, problems = settled(updates((6, 4), (6, 4)), {"m.up": ref("m.up", 2, 6, 4)}, TABLE)
    assert not problems  # two updates of one tensor: the planner refuses them as such
    _, [problem] = settled(updates((6, 4), (6, 4), (6, 4)), ALIKE, TABLE)
    assert problem.where == "m"


def test_the_nearest_names_are_looked_for_among_a_bounded_number(monkeypatch):
    compared = []
    monkeypatch.setattr(
        base_names, "get_close_matches", lambda _, names, **__: compared.extend(names) or names[:3]
    )
    base = BaseNames([f"layers.{n}.q.weight" for n in range(10_000)] + ["q" * 1000])
    assert base.nearest("layers.5.k.weight")[0] == "layers.0.q.weight"
    assert len(compared) == 500
    assert base.nearest("q" * 1000) == []
