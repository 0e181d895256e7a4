"""Names of the base that are one parameter: which is stored, and what an adapter's file may do."""

from pathlib import Path

import pytest

from lora_export.planning.facts.user_facts import FactTable
from lora_export.planning.given import Given, Tie
from lora_export.planning.merge_options import Options
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.tensor_changes import TensorChanges
from lora_export.records import Adapter, Checkpoint, TensorRef, TensorSpec

BESIDE = Path("lora/non_lora_trainables.bin")


def ref(name, file="base.bin"):
    return TensorRef(TensorSpec(name, "F32", (2, 2)), Path(file), 0, 16)


STORED = {name: ref(name) for name in ("embed.weight", "fc.weight")}


@pytest.fixture
def given():
    base = Checkpoint(Path("base.bin"), "file", ())
    tie = Tie(("embed.weight", "head.weight"), "embed.weight")
    adapter = Adapter(Path("lora"), "peft", (), (), joined={BESIDE: BESIDE.name})
    names = BaseNames(STORED)
    return Given(base, STORED, names, (tie,), (adapter,), FactTable(), None, Options())


def test_a_tied_name_has_the_value_of_the_stored_one(given):
    assert given.stored_name("head.weight") == given.stored_name("embed.weight") == "embed.weight"
    assert given.tensor("head.weight") is STORED["embed.weight"]
    assert given.tied_to("head.weight") == ("embed.weight", "head.weight")
    assert given.tied_to("fc.weight") == ()


def test_a_copy_is_the_value_under_every_name(given):
    changes = TensorChanges(copies={"embed.weight": ref("embed.weight", "lora.bin")})
    assert changes.value_of(given, "head.weight") is changes.copies["embed.weight"]
    assert changes.value_of(given, "fc.weight") is STORED["fc.weight"]


def test_a_full_tensor_is_found_where_it_is_new_or_replaces(given):
    changes = TensorChanges(replaced={"fc.weight": ref("a")}, added={"head.weight": ref("b")})
    assert changes.full_tensor("fc.weight") is changes.replaced["fc.weight"]
    assert changes.full_tensor("head.weight") is changes.added["head.weight"]
    assert [*changes.whole()] == ["head.weight", "fc.weight"]
    with pytest.raises(KeyError):
        changes.full_tensor("embed.weight")


def test_only_a_file_beside_the_adapter_can_be_left_out(given):
    assert given.way_out(ref("x", BESIDE), "a hint") == (
        "a hint; --ignore 'non_lora_trainables.bin' leaves the file out"
    )
    assert given.way_out(ref("x", "lora/adapter_model.bin"), "a hint") == "a hint"
