"""The library refuses what the command line refuses: unknown names, and values no option takes."""

import inspect
from pathlib import Path

import click
import pytest

import lora_export
from lora_export import api
from lora_export.api.job.keywords import Settings
from lora_export.cli import main
from lora_export.cli.flags import output_options
from lora_export.errors import UsageError
from lora_export.options import VERBS

FUNCTIONS = {
    "merge": api.merge,
    "onnx": api.export_onnx,
    "verify": api.verify,
    "unmerge": api.unmerge,
    "inspect": api.inspect,
    "parity": lora_export.parity,
}
PLACES = {"base", "adapters", "artifact", "merged", "path", "suite"}
# What the command line names otherwise: the paths, and those of --init.
OF_INIT = {"paths", "init", "output"}
# What each verb needs to be called at all; no path is looked at before the keywords are.
NEEDED = {
    "merge": ("b", ["l"], "o"),
    "onnx": ("b", ["l"], "o.onnx"),
    "verify": ("a",),
    "unmerge": ("m", "o"),
    "inspect": ("p",),
    "parity": ("s",),
}
MERGES = ("merge", "onnx", "verify")


def declared(verb):
    return {option.name for option in VERBS[verb]}


def of_command(verb):
    @output_options
    def about_output():
        pass

    output = {option.name for option in click.command(about_output).params}
    command = main.get_command(click.Context(main), verb)
    own = {parameter.name for parameter in command.params} - output
    return own - OF_INIT if verb == "parity" else own


def of_function(verb):
    parameters = inspect.signature(FUNCTIONS[verb].__wrapped__).parameters
    names = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    return names, len(names) < len(parameters)


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_takes_what_is_declared(verb):
    assert of_command(verb) - PLACES == declared(verb) - PLACES


@pytest.mark.parametrize("verb", VERBS)
def test_the_library_takes_what_is_declared(verb):
    names, more = of_function(verb)
    settings = Settings.__optional_keys__ if more else set()
    assert names - PLACES - {"progress", "on_row"} <= declared(verb)
    assert declared(verb) <= names | settings


@pytest.mark.parametrize("verb", VERBS)
def test_both_have_the_declared_defaults(verb):
    parameters = inspect.signature(FUNCTIONS[verb].__wrapped__).parameters
    by_name = {option.name: option for option in VERBS[verb]}
    for name in by_name.keys() & parameters.keys():
        default = parameters[name].default
        assert default in (by_name[name].default, inspect.Parameter.empty), name


def test_a_verb_that_is_not_declared_has_no_command():
    # `explain` explains the others, and does nothing to a file.
    assert set(main.list_commands(click.Context(main))) == {*VERBS, "explain"}


def refusals(verb, **keywords):
    with pytest.raises(UsageError) as caught:
        FUNCTIONS[verb](*NEEDED[verb], **keywords)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_keyword(verb):
    [told] = refusals(verb, anything=3)
    assert "unknown keyword 'anything'" in told


@pytest.mark.parametrize(
    ("verb", "keyword", "near"),
    [
        ("merge", "weights", "weight"),
        ("merge", "alhpa", "alpha"),
        ("merge", "enable_loras", "enable_lora"),
        ("onnx", "opsets", "opset"),
        ("onnx", "provder", "provider"),
        ("verify", "adapter", "adapters"),
        ("verify", "bse", "base"),
        ("unmerge", "job", "jobs"),
        ("inspect", "pth", "path"),
    ],
)
def test_the_nearest_name_is_offered(verb, keyword, near):
    [told] = refusals(verb, **{keyword: 1})
    assert f"unknown keyword '{keyword}'" in told
    assert f"did you mean {near}?" in told


@pytest.mark.parametrize(
    ("verb", "keyword", "instead"),
    [
        ("merge", "trust_config", "trust_file=False"),
        ("merge", "no_verify", "verify=False"),
        ("onnx", "no_fan_in_fan_out", "fan_in_fan_out=False"),
    ],
)
def test_a_flag_without_a_keyword_is_not_taken_for_its_contrary(verb, keyword, instead):
    [told] = refusals(verb, **{keyword: True})
    assert f"unknown keyword '{keyword}'" in told
    assert f"write {instead}" in told
    assert "did you mean" not in told


def test_all_of_one_call_is_told_at_once():
    told = refusals("merge", wieght=[0.5], recipe="peft_safe", jobs=0)
    assert len(told) == 3


WRONG = {
    "text": [3, b"x", ["x"]],
    "path": [3, b"x"],
    "factory": [3, b"x", ["x"]],
    "number": ["16", True, [1.0]],
    "whole": ["1", 1.5, True],
    "flag": ["no", 1, 0],
    "either": ["no", 1],
    "choice": ["exakt", "", 1, True],
    "blocks": [3, ["x", "y"], [2], [], [0, False]],
}


def cases():
    """Every wrong value of every option, less those that NEEDED gives by their place already."""
    for verb, options in VERBS.items():
        places = inspect.signature(FUNCTIONS[verb]).bind_partial(*NEEDED[verb]).arguments
        for option in [option for option in options if option.name not in places]:
            for value in WRONG[option.takes]:
                yield verb, option, [value] if option.many else value
            if option.many:
                yield verb, option, "abc"
            if option.least is not None:
                yield verb, option, option.least - 1


@pytest.mark.parametrize(("verb", "option", "value"), list(cases()))
def test_no_option_takes_a_value_outside_of_its_kind(verb, option, value):
    [told] = refusals(verb, **{option.name: value})
    assert option.name in told or option.flag in told


@pytest.mark.parametrize("verb", ["merge", "onnx"])
@pytest.mark.parametrize("adapters", ["lora", b"lora", 3, None])
def test_one_path_is_no_list_of_adapters(verb, adapters):
    output = {"output": "o.onnx"}
    with pytest.raises(UsageError, match="adapters takes a list"):
        FUNCTIONS[verb]("b", adapters, **output)


def test_a_base_that_is_no_path_is_refused():
    with pytest.raises(UsageError, match="base is 3"):
        api.merge(3, ["l"], "o")


def test_the_page_about_python_runs(tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[3]
    text = (root / "docs" / "python.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "samples").symlink_to(root / "samples")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "merged.safetensors\nTrue" in capsys.readouterr().out
