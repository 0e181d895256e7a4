"""The line of every key of a TOML file, and files that are none."""

import pytest

from lora_export.errors import InputError, LoraExportError, UsageError
from lora_export.toml_file import read_toml

SUITE = '''\
# a suite
format = 1

[defaults]
alpha = 8
input = [
    "x=float32[batch,4]",  # [not.a.header]
]
"no-verify" = true
note = """
[neither] = 1
"""

[models.chargpt]
base = "b"

[[case]]
name = "one"
expect = { exit = 4, "max error" = 1e-5 }
[case.more]
seed = 1
[[case.rows]]
at = 1
[[case.rows]]
at = 2

[[case]]
a.b = 3
'''


def test_every_key_has_the_line_of_its_statement(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    lines = read_toml(path).lines
    assert {place: lines[place] for place in sorted(lines, key=lambda p: (lines[p], len(p)))} == {
        ("format",): 2,
        ("defaults",): 4,
        ("defaults", "alpha"): 5,
        ("defaults", "input"): 6,
        ("defaults", "no-verify"): 9,
        ("defaults", "note"): 10,
        ("models",): 14,
        ("models", "chargpt"): 14,
        ("models", "chargpt", "base"): 15,
        ("case",): 17,
        ("case", 0): 17,
        ("case", 0, "name"): 18,
        ("case", 0, "expect"): 19,
        ("case", 0, "expect", "exit"): 19,
        ("case", 0, "expect", "max error"): 19,
        ("case", 0, "more"): 20,
        ("case", 0, "more", "seed"): 21,
        ("case", 0, "rows"): 22,
        ("case", 0, "rows", 0): 22,
        ("case", 0, "rows", 0, "at"): 23,
        ("case", 0, "rows", 1): 24,
        ("case", 0, "rows", 1, "at"): 25,
        ("case", 1): 27,
        ("case", 1, "a"): 28,
        ("case", 1, "a", "b"): 28,
    }


def test_a_place_without_a_line_is_in_the_table_around_it(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    file = read_toml(path)
    assert file.at("case", 1, "gone") == f"{path}:27"
    assert file.at("gone") == str(path)


def test_lines_of_a_file_from_windows(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SUITE.replace("\n", "\r\n").encode())
    assert read_toml(path).lines["case", 1, "a", "b"] == 28


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (None, InputError, "no such file"),
        (b"a = 1\nb = [1,\n", UsageError, "is no TOML"),
        (b"a = 1\na = 2\n", UsageError, "line 2"),
        (b"a = '\xff'", InputError, "UTF-8"),
        (b"#" * (1 << 20) + b"\n", InputError, "1 MB"),
    ],
)
def test_what_is_no_toml_file(data, error, words, tmp_path):
    path = tmp_path / "a.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(LoraExportError, match=words) as caught:
        read_toml(path)
    assert isinstance(caught.value, error)
    assert caught.value.problems[0].where == str(path)
