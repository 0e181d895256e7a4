"""What a refusal reads like: a short line a problem, a way out in each, no library's advice."""

from __future__ import annotations

import ast
import io
import json
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file

import lora_export
from lora_export import inspect, merge
from lora_export.cli import main
from lora_export.errors import MOST_PROBLEMS, InputError, LoraExportError, first_problems
from lora_export.records import Problem
from lora_export.shown import MOST, reason_of

PACKAGE = Path(lora_export.__file__).parent
ADVICE = ("weights_only", "trust_remote_code", "set_int_max_str_digits", "allow_pickle")
LONG = "layer." * 200


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def archive(value: object, **settings) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


class Strange:
    def __reduce__(self):
        return (print, ("run",))


GOOD = save({"a": torch.zeros(3)})
FILES = {
    "empty": b"",
    "cut short": GOOD[:-4],
    "too long": GOOD + b"xyz",
    "header cut short": GOOD[:20],
    "header of another kind": safetensors([]),
    "header is no JSON": safetensors(b"{]"),
    "a number without end": safetensors(b'{"a": ' + b"9" * 5000 + b"}"),
    "deep": safetensors(b'{"a": ' + b"[" * 100_000 + b"}"),
    "dtype": safetensors({"a": entry(dtype="F33")}, b"1234"),
    "shape": safetensors({"a": entry(shape=[2])}, b"1234"),
    "overlap": safetensors({"a": entry(), "b": entry()}, b"1234"),
    "long name": safetensors({LONG: entry(dtype="F33")}, b"1234"),
    "many faults": safetensors({f"{LONG}{n}": entry(dtype="F33") for n in range(500)}, b"1234"),
    "metadata": safetensors({"__metadata__": {"a": 1}, "b": entry()}, b"1234"),
    "code": archive({"a": Strange()}),
    "no tensors": archive({"a": 1}),
    "archive cut short": archive({"a": torch.zeros(100)})[:-200],
    "another archive": b"PK\3\4" + bytes(100),
    "text": b"once upon a time",
    "GGUF": b"GGUF" + bytes(100),
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_in_short_lines_with_a_way_out(name, tmp_path):
    file = tmp_path / "base.safetensors"
    file.write_bytes(FILES[name])
    with pytest.raises(LoraExportError) as caught:
        inspect(file)
    for problem in caught.value.problems:
        assert problem.hint, problem
        first, *further = str(problem).splitlines()
        assert len(f"error: {first}") <= MOST
        assert len(further) <= 1
    assert not [word for word in ADVICE if word in str(caught.value)]


CUT = {
    "safetensors": save({"a": torch.zeros(30), "b": torch.zeros(30), "c": torch.zeros(30)})[:-200],
    "header": FILES["header cut short"],
    "zip": FILES["archive cut short"],
    "legacy": archive({"a": torch.zeros(100)}, _use_new_zipfile_serialization=False)[:-200],
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_short_is_one_problem_with_its_size(name, tmp_path):
    file = tmp_path / "base.safetensors"
    file.write_bytes(CUT[name])
    with pytest.raises(InputError) as caught:
        inspect(file)
    (problem,) = caught.value.problems
    assert problem.cause == "input/truncated"
    assert f"{len(CUT[name]):,}" in problem.message


FOLDERS = {
    "config is no JSON": {"config.json": b"{"},
    "config is a list": {"config.json": b"[]"},
    "index without a map": {"model.safetensors.index.json": b"{}"},
    "index leads away": {
        "model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}'
    },
    "shards are missing": {
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {f"{LONG}{n}": f"model-{n}.safetensors" for n in range(300)}}
        ).encode()
    },
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_broken_folder_is_refused_in_short_lines_with_a_way_out(name, tmp_path):
    if "index" not in name and "shards" not in name:
        (tmp_path / "model.safetensors").write_bytes(GOOD)
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(LoraExportError) as caught:
        merge(tmp_path, [tmp_path / "none"], tmp_path / "out")
    assert all(problem.hint for problem in caught.value.problems)
    assert len(str(caught.value).splitlines()) <= 2 * MOST_PROBLEMS + 1


def test_of_many_problems_the_first_are_shown_and_the_others_counted(tmp_path):
    file = tmp_path / "base.safetensors"
    file.write_bytes(FILES["many faults"])
    result = CliRunner().invoke(main, ["inspect", str(file)])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == MOST_PROBLEMS + 1
    assert errors[-1] == "error: ... and 480 more problems"
    assert all(len(line) <= MOST for line in errors)
    listed = CliRunner().invoke(main, ["inspect", str(file), "--json"])
    problems = json.loads(listed.stdout)["error"]["problems"]
    assert len(problems) == 500
    assert all(LONG in problem["where"] for problem in problems)


@pytest.mark.parametrize(("number", "lines"), [(1, 1), (20, 20), (21, 21), (200_000, 21)])
def test_how_many_problems_are_shown(number, lines):
    error = InputError.of([Problem(f"fault {n}") for n in range(number)])
    assert len(first_problems(error.problems)) == lines
    assert len(str(error).splitlines()) == lines
    assert len(error.problems) == number


TOLD = {
    "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; "
    "use sys.set_int_max_str_digits() to increase the limit": "Exceeds the limit (4300 digits) for "
    "integer string conversion: value has 5000 digits",
    "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` will "
    "likely succeed. Please file an issue.": "Weights only load failed.",
    "The repository holds custom code. Make sure you have read the code there, then set the option "
    "`trust_remote_code=True` to remove this error.": "The repository holds custom code.",
    "Object arrays cannot be loaded when allow_pickle=False": "ValueError",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)": "mat1 and mat2 shapes cannot be "
    "multiplied (2x3 and 4x5)",
    "no usable data set; the passes differ": "no usable data set; the passes differ",
    "two\nlines\x1b[2J": r"two lines\x1b[2J",
    "": "ValueError",
}


@pytest.mark.parametrize("text", TOLD)
def test_a_library_is_quoted_without_its_advice(text):
    assert reason_of(ValueError(text)) == TOLD[text]


def test_a_library_is_quoted_at_a_bounded_length():
    assert len(reason_of(ValueError("word " * 10**6))) <= MOST
    assert len(reason_of(ValueError("x" * 10**6))) <= MOST


def test_the_models_own_code_is_quoted_without_advice(tmp_path):
    (tmp_path / "net.py").write_text(
        f"import torch\ndef build():\n    return torch.load({str(tmp_path / 'whole.pt')!r})\n"
    )
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / "b.safetensors")
    factors = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
    save_file(factors, tmp_path / "l.safetensors")
    paths = [str(tmp_path / name) for name in ("b.safetensors", "l.safetensors", "o.safetensors")]
    words = ["merge", *paths[:2], "-o", paths[2], "--model", f"{tmp_path / 'net.py'}:build"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "Weights only load failed" in result.stderr
    assert not [word for word in ADVICE if word in result.output]


QUOTED = {
    "checkpoint/reading.py": 1,  # the system's own words, strerror
    "toml_file.py": 1,
    "cli/_streams.py": 1,
    "checkpoint/output/publish.py": 1,  # the cause of a publication that is taken back
}


def test_no_message_quotes_an_error_as_it_is():
    """`reason_of` leaves out advice; patterns of PEFT quote Python's `re`, which gives none."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node) == "str(error)":
                name = path.relative_to(PACKAGE).as_posix()
                found[name] = found.get(name, 0) + 1
            if isinstance(node, ast.FormattedValue) and ast.unparse(node.value) == "error":
                name = path.relative_to(PACKAGE).as_posix()
                if not name.startswith(("dialects/peft/", "cli/", "suites/")):
                    found[name] = found.get(name, 0) + 1
    allowed = {
        **QUOTED,
        "onnx_export/capture/exporters.py": 1,  # takes the first lines itself
        "onnx_export/file/audit.py": 1,  # a check's detail
        "verification/runtime/sessions.py": 1,  # ONNX Runtime names the node
        "suites/pytest_plugin.py": 1,  # an error of our own
        "suites/reading/update_suite.py": 1,  # the system's own words
        "suites/printing/written.py": 1,  # as above
        "suites/running/run_row.py": 1,
    }
    assert found == {**allowed, "shown.py": found.get("shown.py", 0)}
