from __future__ import annotations

from types import SimpleNamespace

import pytest

from lora_export.models.subject import Subject


class Recorder:
    """A source that remembers what it is asked for."""

    def __init__(self):
        self.asked = []

    def load(self, checkpoint, *, full, untied, dtype):
        self.asked.append(("load", checkpoint, full, untied, dtype))

    def blank(self, checkpoint, *, untied, dtype):
        self.asked.append(("blank", checkpoint, untied, dtype))


@pytest.mark.parametrize(("reshaped", "blueprint"), [((), "base"), (("lm_head.weight",), "merged")])
def test_weights_are_the_merged_ones_and_the_shape_is_the_bases_unless_it_changes(
    reshaped, blueprint
):
    source = Recorder()
    plan = SimpleNamespace(base="base", separated=("tied",), reshaped=reshaped)
    subject = Subject(source, plan, "merged")
    subject.load()
    subject.load({"a": "ref"}, dtype="float16")
    subject.blank()
    assert subject.blueprint == blueprint
    assert source.asked == [
        ("load", "merged", {}, ("tied",), "float32"),
        ("load", "merged", {"a": "ref"}, ("tied",), "float16"),
        ("blank", blueprint, ("tied",), "float32"),
    ]
