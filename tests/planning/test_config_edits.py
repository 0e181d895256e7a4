"""Edits of config.json: values and words by their keys, at the top and in the object inside."""

import pytest

from lora_export.planning.config_edits import ConfigEdits

KEY = "vocab_size"


def test_an_edit_has_a_value_and_words():
    edits = ConfigEdits({KEY: 6})
    edits.edit(KEY, 8)
    edits.edit("id2label", {"0": "a"}, "id2label: 1 label")
    edits.edit("num_classes", 3, inside="model_args")
    assert edits.values == {(KEY,): 8, ("id2label",): {"0": "a"}, ("model_args", "num_classes"): 3}
    assert [*edits.words.values()] == [
        "vocab_size: 8",
        "id2label: 1 label",
        "model_args.num_classes: 3",
    ]
    assert edits.result() == {KEY: 8, "id2label": {"0": "a"}}


EVERYWHERE = {
    "nowhere": ({}, []),
    "top": ({KEY: 6}, [(KEY,)]),
    "inside": ({"text_config": {KEY: 6}}, [("text_config", KEY)]),
    "both": ({KEY: 6, "text_config": {KEY: 6}}, [("text_config", KEY), (KEY,)]),
    "no object": ({"text_config": "x"}, []),
}


@pytest.mark.parametrize(("config", "places"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_value_is_set_wherever_the_file_has_it(config, places):
    edits = ConfigEdits(config)
    assert edits.edit_everywhere(KEY, 8) is bool(places)
    assert edits.values == dict.fromkeys(places, 8)
    assert edits.config is config
