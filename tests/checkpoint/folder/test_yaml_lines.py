"""Settings are read as a YAML reader reads them, or told as not understood."""

import pytest
import yaml

from lora_export.checkpoint.folder.yaml_lines import are_members, members_of

PLAIN = """checkpoint_dir: /some/dir
precision: null
lora_alpha: 16
lora_dropout: 0.05
lora_key: false
data:
  class_path: litgpt.data.Alpaca
  init_args:
    lora_alpha: 99
devices:
- 0
- 1
note: 'a long text
  lora_alpha: 98'
list: [1,
  2]
# lora_alpha: 97
optimizer: AdamW
"""
HIDDEN = [
    "note: 'a\nlora_alpha: 99\n'",
    'note: "a\nlora_alpha: 99\nb: c"',
    "note: {a: 1,\nlora_alpha: 99}",
    "note: [a,\nlora_alpha: 99]",
]
ODD = [
    "{lora_alpha: 16}",
    "? lora_alpha\n: 16",
    "a: 1\n---\na: 2",
    "a: 1\n...\nb: 2",
    "!!map\na: 1",
]


def test_members_are_those_of_a_yaml_reader():
    lines = PLAIN.splitlines()
    assert are_members(lines)
    read, found = yaml.safe_load(PLAIN), dict(members_of(lines))
    assert list(found) == list(read)
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    assert {key: yaml.safe_load(text) for key, text in texts.items()} == {k: read[k] for k in texts}
    assert {"lora_alpha", "lora_dropout", "lora_key", "optimizer"} <= set(texts)


@pytest.mark.parametrize("text", HIDDEN)
def test_a_member_inside_a_value_is_none(text):
    assert "lora_alpha" in dict(members_of(text.splitlines()))
    assert not are_members(text.splitlines())


@pytest.mark.parametrize("text", ODD)
def test_other_yaml_is_not_understood(text):
    assert not are_members(text.splitlines())
