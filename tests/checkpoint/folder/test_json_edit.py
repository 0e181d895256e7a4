"""Edits of config.json: every byte but those of the edited value stays."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.checkpoint.folder.json_edit import edit_json
from lora_export.errors import InputError

CONFIG = b'{\n  "b": 1e-05,\n  "tie": true,\n  "a": {"x":   [1,2]},\n  "n": "\\u00fc"\n}\n'
EDITS = {
    "change": (CONFIG, {"tie": False}, CONFIG.replace(b"true", b"false")),
    "change two": (
        CONFIG, {"a": 1, "b": 2},
        CONFIG.replace(b'{"x":   [1,2]}', b"1").replace(b"1e-05", b"2"),
    ),
    "add": (CONFIG, {"z": None}, CONFIG[:-3] + b',\n  "z": null\n}\n'),
    "add nested": (CONFIG, {"z": [1]}, CONFIG[:-3] + b',\n  "z": [\n    1\n  ]\n}\n'),
    "nothing": (CONFIG, {}, CONFIG),
    "one line": (b'{"a":1,"b":2}', {"b": [3, 4], "c": 5}, b'{"a":1,"b":[3, 4],"c":5}'),
    "empty": (b"{}", {"a": 1, "b": 2}, b'{\n  "a": 1,\n  "b": 2\n}'),
    "tabs": (b'{\n\t"a": 1\n}', {"b": {"c": 2}}, b'{\n\t"a": 1,\n\t"b": {\n\t\t"c": 2\n\t}\n}'),
    "Windows": (
        b'{\r\n  "a": 1\r\n}', {"b": [2]},
        b'{\r\n  "a": 1,\r\n  "b": [\r\n    2\r\n  ]\r\n}',
    ),
    "nested key of the same name": (
        b'{"x": {"tie": true}, "tie": true}', {"tie": False}, b'{"x": {"tie": true}, "tie": false}',
    ),
    "not ASCII": ('{"a": "ü"}'.encode(), {"a": "ö"}, '{"a": "ö"}'.encode()),
    "escapes": (b'{"\\"a\\\\": 1, "b": "}"}', {"b": 2}, b'{"\\"a\\\\": 1, "b": 2}'),
}  # fmt: skip


NESTED = {
    "inside": (
        b'{\n  "t": {\n    "v": 1,\n    "x": 1E-5\n  },\n  "v": 1\n}\n', {("t", "v"): 2},
        b'{\n  "t": {\n    "v": 2,\n    "x": 1E-5\n  },\n  "v": 1\n}\n',
    ),
    "inside and at the top": (
        b'{"t": {"v": 1}, "v": 1}', {("t", "v"): 2, ("t", "w"): 3, ("v",): 4},
        b'{"t": {"v": 2,"w": 3}, "v": 4}',
    ),
    "two levels": (b'{"a": {"b": {"c": "}"}}}', {("a", "b", "c"): 1}, b'{"a": {"b": {"c": 1}}}'),
    "beside tagged numbers": (
        b'{"a": [0.0, {"__float__": "-Infinity"}], "v": 1}', {("v",): 2},
        b'{"a": [0.0, {"__float__": "-Infinity"}], "v": 2}',
    ),
    "beside Python's": (
        b'{"t": {"a": NaN, "v": 1}}', {("t", "v"): 2}, b'{"t": {"a": NaN, "v": 2}}'
    ),
    "a number that JSON has not, tagged": (
        b'{"a": {"__float__": "Infinity"}}', {("b",): [{"c": -math.inf}, math.nan]},
        (b'{"a": {"__float__": "Infinity"},"b": [{"c": {"__float__": "-Infinity"}}, '
         b'{"__float__": "NaN"}]}'),
    ),
    "a number that JSON has not, as Python writes it": (
        b'{"a": Infinity}', {("a",): [math.nan, -math.inf]}, b'{"a": [NaN, -Infinity]}',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "edits", "expected"), NESTED.values(), ids=NESTED)
def test_an_edit_inside_an_object_changes_its_value_alone(content, edits, expected):
    assert edit_json(content, edits) == expected


def at_top(edits):
    return {(key,): value for key, value in edits.items()}


@pytest.mark.parametrize(("content", "edits", "expected"), EDITS.values(), ids=EDITS)
def test_only_the_edited_value_changes(content, edits, expected):
    assert edit_json(content, at_top(edits)) == expected
    assert json.loads(expected) == {**json.loads(content), **edits}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=5)


@given(objects, objects, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_an_edited_object_is_the_object_with_the_edits(before, edits, indent, ascii_only):
    content = json.dumps(before, indent=indent, ensure_ascii=ascii_only).encode(
        errors="surrogatepass"
    )
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    edited = json.loads(edit_json(content, at_top(edits)))
    assert edited == {**before, **edits}
    assert list(edited) == list({**before, **edits})


WITHOUT = {
    "the first": (b'{\n  "a": 1,\n  "b": 2\n}', ["a"], b'{\n  "b": 2\n}'),
    "one between": (b'{"a": 1, "b": {"c": [2]}, "d": 3}', ["b"], b'{"a": 1, "d": 3}'),
    "the last": (b'{\n  "a": 1,\n  "b": "},"\n}\n', ["b"], b'{\n  "a": 1\n}\n'),
    "the only one": (b'{\n  "a": 1\n}', ["a"], b"{\n}"),
    "all": (b'{"a": 1, "b": 2}', ["b", "a"], b"{}"),
    "none": (b'{ "a": 1 }', ["x"], b'{ "a": 1 }'),
}


@pytest.mark.parametrize(("content", "names", "expected"), WITHOUT.values(), ids=WITHOUT)
def test_a_member_is_taken_out_and_nothing_else(content, names, expected):
    assert edit_json(content, {}, names) == expected
    left = {key: value for key, value in json.loads(content).items() if key not in names}
    assert json.loads(edit_json(content, {("z",): 1}, names)) == {**left, "z": 1}


@given(objects, st.sampled_from([None, 0, 2, "\t"]), st.data())
def test_an_object_without_members_is_the_object_less_them(before, indent, data):
    names = data.draw(st.lists(st.sampled_from(sorted(before)), max_size=3)) if before else []
    content = json.dumps(before, indent=indent).encode()
    left = {key: value for key, value in before.items() if key not in names}
    assert json.loads(edit_json(content, {}, names)) == left


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b""])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(InputError):
        edit_json(content, {("a",): 1})
