"""Every mistake of a suite is named with line and nearest key, before anything runs."""

from __future__ import annotations

import pytest

from lora_export.errors import InputError, UsageError
from lora_export.suites.reading.read_suite import read_suite

RIGHT = """\
format = 1
[models.m]
base = "base.safetensors"
[[case]]
name = "one"
use = "m"
adapters = ["lora.safetensors"]
alpha = 4
"""

PLAIN = '[[case]]\nname="a"\nbase="b"\nadapters=["c"]\n'

# A line more in the case of RIGHT, or another text; (line, message, a part of the hint).
WRONG = {
    "": (0, "has no [[case]]", "docs/ci.md", "format = 1\n"),
    "no format": (0, "format is missing", "format = 1", RIGHT.replace("format = 1\n", "")),
    "format 2": (1, "format is 2", "format = 1", RIGHT.replace("format = 1", "format = 2")),
    "format true": (1, "format is True", "= 1", RIGHT.replace("format = 1", "format = true")),
    "a key of the top": (1, "unknown key 'cases'", "did you mean case?", f"cases = 1\n{RIGHT}"),
    "models": (2, "models is no table", "[models.NAME]", f'format=1\nmodels = "a"\n{PLAIN}'),
    "a model": (3, "m is no table", "[models.m]", f'format=1\n[models]\nm = "b"\n{PLAIN}'),
    "case is no list": (2, "case is no list of tables", "[[case]]", "format = 1\n[case]\n"),
    "aplha = 8": (9, "unknown key 'aplha'", "did you mean alpha?"),
    "adapter = 'x'": (9, "adapter is no option of a suite", "adapters"),
    "output = 'x'": (9, "output is no option of a suite", "--keep"),
    "no-verify = true": (9, "no-verify is no option of a suite", "proves every row"),
    "dry-run = true": (9, "dry-run is no option of a suite", "proves every row"),
    "seed = -1": (9, "seed is -1", "0 or more"),
    "artefacts = ['onyx']": (9, "artefacts has 'onyx'", "did you mean onnx?"),
    "artefacts = ['onnx:int9']": (9, "artefacts has 'onnx:int9'", "did you mean onnx:int"),
    "artefacts = []": (9, "artefacts is empty", "merge"),
    "artefacts = ['merge', 'merge']": (9, "artefacts names one twice", "leave"),
    "artefacts = [1]": (9, "artefacts is [1]", "list of texts"),
    "artefact = 1": (9, "artefact is 1", "text in quotes"),
    "require = ['weihgts']": (9, "require has 'weihgts'", "did you mean weights?"),
    "adapters = []": (5, "adapters is empty", "adapters =",
                      'format = 1\n\n[[case]]\nname = "a"\nadapters = []\nbase = "b"\n'),
    "a typo meets a refusal": (
        11, "base names no file: ", "name its cause in expect",
        f'{RIGHT}[[case]]\nname = "b"\nbase = "gone"\nadapters = ["."]\nexpect = {{exit = 4}}\n'),
    "a factory's file": (
        9, "model names no file: ", "name its cause in expect",
        """format = 1\n\n\n[[case]]\nname = "b"\nbase = "."\nadapters = ["."]\nexpect = { exit = 4 }
model = "gone.py:build"\n"""),
    "artefacts = ['onnx:int8']\nprecision = 'fp16'": (10, "precision has no effect", "leave"),
    "artefacts = ['onnx', 'onnx:int8']\nprecision = 'int8'": (9, "artefacts names one twice", ""),
    "artefacts = ['onnx', 'onnx:int4']\nint8 = 'signed'": (10, "int8 has no effect", "leave"),
    "opset = 18": (9, "opset has no effect: the case runs merge", "leave it out"),
    "expect = 1": (9, "expect is no table", "expect = {"),
    "expect = { exti = 4 }": (9, "unknown key 'exti'", "did you mean exit?"),
    "expect = { exit = 1 }": (9, "exit is 1", "one of: 0, 2, 3"),
    "expect = { exit = true }": (9, "exit is True", "one of: 0, 2, 3"),
    "expect = { max-error = 1 }": (9, "unknown key 'max-error'", "did you mean max_error?"),
    "expect = { max_error = -1 }": (9, "max_error is -1", "0 or more"),
    "expect = { max_error = nan }": (9, "max_error is nan", "0 or more"),
    "expect = { size_below = '30 moons' }": (9, "size_below is '30 moons'", "30MB"),
    "expect = { sha256 = '' }": (9, "sha256 is ''", "text in quotes"),
    "expect = { cause = 'x' }": (9, "cause is that of a refusal", "exit"),
    "expect = { exit = 4, max_error = 1 }": (
        9, "max_error is expected of a result, and exit 4 gives none", "leave one"),
    "use": (6, "use names no model: 'mm'", "did you mean m?", RIGHT.replace('= "m"', '= "mm"')),
    "no name": (4, "the case has no name", "name =", RIGHT.replace('name = "one"\n', "")),
    "no base": (4, "the case has no base", "[defaults]", RIGHT.replace('use = "m"\n', "")),
    "neither": (4, "the case has no base and no adapters", "[defaults]",
                'format = 1\n\n\n[[case]]\nname = "a"\n'),
    "a base alone": (4, "the case has no adapters", "adapters =",
                     'format = 1\n\n\n[[case]]\nname = "a"\nartefact="x"\nbase="y"\n'),
    "artefact = 'x'\nartefacts = ['merge']": (9, "artefact and artefacts exclude", "leave"),
    "a second name": (11, "the name 'one' is that of another case", ":5",
                      f'{RIGHT}\n[[case]]\nname = "one"\nuse = "m"\nadapters = ["x"]\n'),
    "a broken line": (0, "is no TOML: ", "", "format = \n"),
}  # fmt: skip


@pytest.mark.parametrize("lines", WRONG)
def test_a_mistake_is_named(lines, tmp_path):
    line, message, hint, *whole = WRONG[lines]
    path = tmp_path / "suite.toml"
    path.write_text(whole[0] if whole else f"{RIGHT}{lines}\n")
    for name in ("base", "lora"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(UsageError) as refused:
        read_suite(path)
    [problem] = refused.value.problems
    assert problem.message.startswith(message)
    assert problem.where == (f"{path}:{line}" if line else str(path))
    assert hint in problem.hint


def test_all_mistakes_at_once_in_the_order_of_their_lines(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(f"{RIGHT}expect = {{ exti = 3 }}\naplha = 3\nrequire = ['modle']\nseed = 'x'\n")
    with pytest.raises(UsageError) as refused:
        read_suite(path)
    lines = [problem.where.rpartition(":")[2] for problem in refused.value.problems]
    assert lines == ["9", "10", "11", "12"]


def test_nothing_runs_where_a_case_is_wrong(place, monkeypatch):
    from lora_export import api

    monkeypatch.setattr(api, "merge", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(UsageError, match="unknown key 'aplha'"):
        place.run(f"{RIGHT.removeprefix('format = 1')}\n[[case]]\nname = 'two'\nuse = 'm'\n"
                  "adapters = ['lora.safetensors']\naplha = 4\n")  # fmt: skip


def test_no_such_suite(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_suite(tmp_path / "gone.toml")


def test_what_a_right_suite_says(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(
        'format = 1\n[defaults]\nseed = 3\nalpha = 1\nextras = ["hf"]\n'
        '[models.m]\nbase = "b"\nalpha = 2\nmodel = "net.py:build"\n'
        '[[case]]\nname = "a"\nuse = "m"\nadapters = "x"\nartefacts = ["merge", "onnx:int8"]\n'
        '[[case]]\nname = "b"\nuse = "m"\nadapters = ["/y", "z"]\nalpha = 5\nartefact = "out"\n'
    )
    first, second = read_suite(path).cases
    assert (first.base, first.adapters) == (f"{tmp_path}/b", (f"{tmp_path}/x",))
    options = {"seed": 3, "alpha": 2, "model": f"{tmp_path}/net.py:build"}
    assert [asked.verb for asked in first.rows()] == ["merge", "onnx"]
    assert [asked.options() for asked in first.rows()] == [
        options,
        {**options, "precision": "int8"},
    ]
    [asked] = second.rows()
    assert (asked.verb, asked.name, asked.artefact) == ("verify", "out", f"{tmp_path}/out")
    assert second.adapters == ("/y", f"{tmp_path}/z")
    assert second.options["alpha"] == 5
    assert (first.extras, first.line, second.line) == (("hf",), 11, 16)


def test_a_precision_is_a_part_of_the_artefacts_name(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(f"{RIGHT}artefacts = ['merge', 'onnx']\nprecision = 'int8'\n")
    [case] = read_suite(path).cases
    assert case.artefacts == ("merge", "onnx:int8")
    path.write_text(f"{RIGHT}artefacts = ['onnx']\nprecision = 'fp32'\n")
    assert read_suite(path).cases[0].artefacts == ("onnx",)


def test_codes_reach_int8_among_several_precisions(tmp_path):
    path = tmp_path / "suite.toml"
    more = {"layout": "hf", "precision": "fp32,int8", "int8": "unsigned"}
    lines = "".join(f"{name} = {value!r}\n" for name, value in more.items())
    path.write_text(f"{RIGHT}artefacts = ['onnx']\n{lines}")
    [asked] = read_suite(path).cases[0].rows()
    assert asked.options().items() >= more.items()


@pytest.mark.parametrize("given", ["base = 'b'", "adapters = ['a']"])
def test_an_artefact_alone_takes_no_half_of_the_defaults(given, tmp_path):
    path = tmp_path / "suite.toml"
    text = f"format = 1\n[defaults]\n{given}\n[[case]]\nname = 'a'\nartefact = 'x'\n"
    path.write_text(text)
    [case] = read_suite(path).cases
    assert (case.base, case.adapters) == ("", ())
    path.write_text(text.replace(given, "base = 'b'\nadapters = ['a']"))
    assert read_suite(path).cases[0].adapters


def test_a_path_that_is_not_there_may_be_the_cause(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(f"{RIGHT}expect = {{ exit = 3, cause = 'input/missing-file' }}\n")
    assert read_suite(path).cases
