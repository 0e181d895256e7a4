"""Every refusal names a cause that is explained, and every check has its words."""

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import lora_export
from lora_export.errors import LoraExportError, UsageError
from lora_export.refusals import causes, checks, explanation, statuses

PACKAGE = Path(lora_export.__file__).parent
KINDS = {error.__name__: error.code for error in LoraExportError.__subclasses__()}
# Where the cause is that of the error itself, or the word for how the program ended.
PASSED_ON = {"errors.py": "cause", "cli/_output.py": "code"}
ENDS = {"bug", "interrupted"}
CHECKS = {"Check", "listed_check", "count_check", "check"}


def calls(names):
    """Every call of one of these functions: the file, the name, the call."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in names:
                yield path.relative_to(PACKAGE).as_posix(), name, node


RAISED = [*calls({*KINDS, "Problem"})]


def cause_of(file, node):
    """The text of `cause=`; None where it is passed on, "" where there is none."""
    for keyword in node.keywords:
        if keyword.arg == "cause" and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
        if keyword.arg == "cause" and getattr(keyword.value, "id", "") == PASSED_ON.get(file):
            return None
    return ""


def test_every_refusal_names_a_cause_that_is_explained():
    unknown = [
        f"{file}:{node.lineno}"
        for file, _, node in RAISED
        if (cause := cause_of(file, node)) is not None and cause not in causes()
    ]
    assert unknown == []
    assert len(RAISED) > 400


def test_a_cause_has_the_kind_of_its_error():
    other = [
        f"{file}:{node.lineno} {cause}"
        for file, name, node in RAISED
        if name != "Problem" and (cause := cause_of(file, node))
        if cause.partition("/")[0] != KINDS[name]
    ]
    assert other == []


def test_every_entry_is_the_cause_of_a_refusal():
    named = {cause_of(file, node) for file, _, node in RAISED}
    assert sorted({*causes()} - named - ENDS) == []


def constants():
    """Every text that the package gives a name in capitals, by that name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    found.setdefault(target.id, set()).add(node.value.value)
    return found


def names_of_checks():
    """The name in each call that makes a check; `*` where it is put together."""
    named = constants()
    for _, _, node in calls(CHECKS):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Name) and first.id.isupper():
            yield from named[first.id]
        elif isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value
        elif isinstance(first, ast.JoinedStr):
            parts = [getattr(part, "value", "*") for part in first.values]
            yield "".join(part if isinstance(part, str) else "*" for part in parts)


def fits(name, entry):
    """Whether an entry is about a check; a name that is put together may be any of several."""
    return fnmatchcase(name, entry) or fnmatchcase(entry, name)


def test_every_check_is_explained_and_no_other():
    found = {*names_of_checks()} - {""}
    assert [name for name in found if not any(fits(name, entry) for entry in checks())] == []
    assert [entry for entry in checks() if not any(fits(name, entry) for name in found)] == []


@pytest.mark.parametrize("entry", [*causes().values(), *checks().values()], ids=lambda e: e.name)
def test_an_entry_is_written_in_short_sentences(entry):
    assert {"what to do", "if it fails"} & entry.facts.keys()
    for title, text in entry.facts.items():
        if title == "example":
            continue
        assert text.endswith("."), text
        for sentence in re.split(r"(?<=[.:?]) ", text):
            assert len(sentence.split()) <= 25, sentence


def test_every_exit_status_is_explained():
    assert [*statuses()] == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "15", "130", "143"]
    assert "fit/no-module" in statuses()["4"].facts["causes"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("fit/no-module", "fit/no-module"),
        ("5", "5"),
        ("merged elements", "merged elements"),
        ("int8 = float32, as far as allowed", "* = float32, as far as allowed"),
        ("merged before rounding = unmerged (torch)", "* = unmerged (torch)"),
        ("ONNX Runtime = merged", "ONNX Runtime = *"),
        ("int8: external data", "external data"),
        ("encoder_model: same graph as the base", "same graph as the base"),
    ],
)
def test_what_can_be_asked(word, found):
    assert explanation(word).name == found


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("fit/no-modul", "did you mean fit/no-module"),
        ("no-module", "did you mean fit/no-module"),
        ("merged element", "did you mean merged elements"),
        ("qqqqqqqq", "lists all of them"),
    ],
)
def test_an_unknown_word_gets_the_nearest(word, near):
    with pytest.raises(UsageError) as caught:
        explanation(word)
    assert near in caught.value.problems[0].hint
