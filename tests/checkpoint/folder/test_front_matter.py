"""Only texts and lists of texts are read from a card, and they are read as YAML readers do."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_export.checkpoint.folder.front_matter import read_front_matter

CARDS = {
    "texts": ("license: apache-2.0\nlibrary_name: transformers", {}),
    "a list": ("language:\n- en\n- de", {}),
    "an indented list": ("language:\n  - en\n  - 'no'", {}),
    "a flow list": ("language: [en, de]", {}),
    "quoted": ("license: \"other\"\nlicense_name: 'it''s mine'", {}),
    "a link": ("license_link: https://example.com/LICENSE#top", {}),
    "comments": ("license: mit  # as before\n# a line\ntags:\n# inside\n- a", {}),
    "a structure beside": ("model-index:\n- name: x\n  results: [a]\nlicense: mit", "model-index"),
    "a block text": ("extra: |\n  license: gpl\nlicense: mit", "extra"),
    "an alias": ("a: &x mit\nlicense: *x", "a license"),
    "a tag": ("license: !!str mit", "license"),
    "a list of lists": ("language: [[en]]", "language"),
    "a no-break space": ("license: 'a\u00a0'\nlanguage: a\u00a0", {}),
    "nothing": ("license: null\nlanguage:\n", "license language"),
    "an open quote": ('license: "mit', None),
}


def card(tmp_path, text, *, end="---\nbody"):
    path = tmp_path / "README.md"
    path.write_bytes(f"---\n{text}\n{end}".encode())
    return read_front_matter(path)


@pytest.mark.parametrize(("text", "unknown"), CARDS.values(), ids=CARDS)
def test_what_is_read_is_what_a_yaml_reader_reads(text, unknown, tmp_path):
    found = card(tmp_path, text)
    if unknown is None:
        assert set(found.values()) == {None}
        return
    expected = yaml.safe_load(text)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        as_read = tuple(value) if isinstance(value, list) else value
        assert found[key] == (None if key in unknown.split() else as_read) if unknown else as_read


@pytest.mark.parametrize("key", ["license", "language"])
def test_norwegian_is_a_language(key, tmp_path):
    assert card(tmp_path, f"{key}: no") == {key: "no"}


@pytest.mark.parametrize("content", [b"", b"# A model", b"---\nlicense: mit\n", b"\xff\xfe---\n"])
def test_a_page_without_metadata(content, tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(content)
    assert read_front_matter(path) == {}


def test_windows_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes("\ufeff---\r\nlicense: mit\r\n---\r\n".encode())
    assert read_front_matter(path) == {"license": "mit"}


texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12)


@given(st.dictionaries(st.sampled_from(["license", "language", "tags"]),
                       texts | st.lists(texts, min_size=1, max_size=3)))  # fmt: skip
def test_what_pyyaml_writes_is_read_or_told_as_not_understood(tmp_path_factory, members):
    path = tmp_path_factory.getbasetemp() / "card.md"
    dumped = yaml.safe_dump(members, allow_unicode=True, width=1000)
    path.write_text(f"---\n{dumped}---\n", encoding="utf-8")
    for key, value in read_front_matter(path).items():
        expected = members[key]
        assert value in (None, tuple(expected) if isinstance(expected, list) else expected)
