"""An undo file from a stranger cannot have a file written or read outside the result's folder."""

from __future__ import annotations

import base64
from copy import deepcopy

import pytest

from lora_export.execution.undo_description import check_description

TEXT = base64.b64encode(b"x").decode()
RIGHT = {
    "format": 1,
    "layout": "folder",
    "shards": [{"file": "model.safetensors", "header": TEXT, "sha256": "0"}],
    "index": {"name": "model.safetensors.index.json", "content": TEXT},
    "edited": {"config.json": TEXT, "sub/x.json": TEXT},
    "kept": ["tokenizer.json", "sub/y.json"],
}


def test_what_a_merge_writes_is_right():
    assert check_description(deepcopy(RIGHT)) == RIGHT
    assert check_description(RIGHT | {"index": None, "layout": "file"})["index"] is None


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "", "..", "a\\x", "a\0", "n" * 300]
)
def test_a_name_that_leads_out_is_refused(name):
    others = (
        {"edited": {name: TEXT}},
        {"kept": [name]},
        {"index": {"name": name, "content": TEXT}},
        {"shards": [RIGHT["shards"][0] | {"file": name}]},
    )
    for other in others:
        with pytest.raises(ValueError, match="no plain name"):
            check_description(RIGHT | other)


def test_a_weight_file_lies_in_the_folder_itself():
    with pytest.raises(ValueError, match="no plain name"):
        check_description(RIGHT | {"shards": [RIGHT["shards"][0] | {"file": "sub/x.safetensors"}]})
