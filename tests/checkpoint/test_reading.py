"""JSON as the libraries read it."""

import json
import math

import pytest
from transformers import PreTrainedConfig

from lora_export.checkpoint.reading import read_json_object

TAGGED = {
    "tagged": '{"a": {"__float__": "Infinity"}, "b": [{"c": {"__float__": "-Infinity"}}]}',
    "as Python writes it": '{"a": Infinity, "b": [{"c": -Infinity}]}',
    "both": '{"a": Infinity, "b": {"__float__": "-Infinity"}}',
    "no tag": '{"a": {"__float__": 3}, "b": {"__float__": "inf"}, "__float__": "NaN", "c": 1}',
    "a tag beside others": '{"a": {"__float__": "NaN", "b": 1}, "c": {"__float__": ["NaN"]}}',
    "an empty object": "{}",
}


@pytest.mark.parametrize("text", TAGGED.values(), ids=TAGGED)
def test_a_configuration_is_read_as_transformers_reads_it(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    expected = PreTrainedConfig._dict_from_json_file(path)
    assert read_json_object(path, tagged_floats=True) == expected
    assert read_json_object(path) == json.loads(text)


def test_nan_is_read_as_well(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"__float__": "NaN"}, "b": NaN}')
    assert all(math.isnan(value) for value in read_json_object(path, tagged_floats=True).values())
