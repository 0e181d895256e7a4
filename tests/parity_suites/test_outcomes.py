"""What becomes of a row: it holds, fails, is refused, is skipped, or meets a bug of ours."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from suite_place import CASE, MERGE

import lora_export
from lora_export import api
from lora_export.errors import UsageError
from lora_export.records import Check


def test_a_merge_holds_and_its_command_repeats_it(place, fork_python, forked):
    row = place.row()
    assert (row.outcome, row.status, row.cause, row.cached) == ("held", 0, "", False)
    assert row.verdict.word == "PROVED"
    assert 0 < row.share <= 1
    assert row.seconds > 0
    assert shlex.split(row.command)[:2] == ["lora-export", "merge"]
    done = subprocess.run(
        ["bash", "-c", row.command], env=forked, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("PROVED")


def damaged(place):
    """A merge of which one element is wrong."""
    adapters = [place.folder / "lora.safetensors"]
    merged = place.folder / "merged.safetensors"
    lora_export.merge(place.folder / "base.safetensors", adapters, merged, alpha=4)
    tensors = load_file(merged)
    tensors["m.weight"][3, 5] += 1
    (place.folder / "merged.safetensors.lora_export.json").unlink()
    save_file(tensors, merged)
    return f'{CASE.format("damaged")}alpha = 4\nartefact = "merged.safetensors"\n'


def test_an_artefact_that_is_wrong_fails_with_its_cause(place):
    result = place.run(damaged(place))
    [row] = result.rows
    assert (result.status, result.passed) == (5, False)
    assert (row.artefact, row.outcome, row.status) == ("merged.safetensors", "failed", 5)
    assert row.cause == row.verdict.text
    assert row.share > 1
    assert "--base" in row.command
    assert any(not check.passed for check in row.report.checks)


REFUSED = {
    "no such base": (3, MERGE.replace("base.safetensors", "gone")),
    "another model": (4, MERGE.replace("lora.safetensors", "other.safetensors")),
    "no alpha": (2, CASE.format("a")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_is_an_error_unless_it_is_expected(what, place):
    status, case = REFUSED[what]
    result = place.run(case)
    [row] = result.rows
    assert (row.outcome, row.status, result.status) == ("error", status, status)
    assert row.cause
    if what == "no such base":  # a typo of the suite, unless the cause is named
        (place.folder / "gone").mkdir()
        [row] = place.run(case).rows
    code = row.report.problems[0].cause
    assert place.run(f"{case}expect = {{ exit = {status}, cause = '{code}' }}\n").passed
    assert place.run(f"{case}expect = {{ exit = {status} }}\n").passed
    other = place.run(f"{case}expect = {{ exit = 7 }}\n")
    assert other.status == 5
    assert other.rows[0].cause.startswith(f"gave exit status {status} (")
    cause = place.run(f"{case}expect = {{ exit = {status}, cause = 'moons' }}\n")
    assert "was refused for another cause than 'moons'" in cause.rows[0].cause
    words = row.cause.split()[-1]
    assert place.run(f"{case}expect = {{ exit = {status}, cause = '{words}' }}\n").passed


def test_a_guard_that_is_dead_fails(place):
    row = place.row("expect = { exit = 4 }")
    assert (row.outcome, row.status) == ("failed", 5)
    assert row.cause == "was accepted; exit status 4 is expected"


def test_the_highest_status_of_refusals_and_a_failure_above_them(place):
    cases = REFUSED["another model"][1] + REFUSED["no such base"][1].replace('"tiny"', '"b"')
    assert place.run(cases).status == 4
    assert place.run(cases + damaged(place)).status == 5


def test_a_bug_in_one_row_is_status_1_and_the_others_run(place, monkeypatch):
    cases = MERGE + damaged(place) + f"{CASE.format('third')}alpha = 4\n"
    right, calls = api.merge, []

    def merge(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise ZeroDivisionError("oops")
        return right(*args, **options)

    monkeypatch.setattr(api, "merge", merge)
    result = place.run(cases)
    assert [row.outcome for row in result.rows] == ["bug", "failed", "held"]
    assert result.status == 1
    assert "ZeroDivisionError: oops" in result.rows[0].cause
    assert "in merge" in result.rows[0].traceback


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (SystemExit(143), 143)])
def test_a_signal_ends_the_run_with_the_rows_so_far(raised, status, place, monkeypatch):
    monkeypatch.setattr(api, "verify", raising(raised))
    cases = MERGE + damaged(place) + f"{CASE.format('third')}alpha = 4\n"
    result = place.run(cases, junit=place.folder / "out.xml")
    assert (result.status, result.left) == (status, 2)
    assert [row.outcome for row in result.rows] == ["held"]
    assert b'name="tiny [merge]"' in (place.folder / "out.xml").read_bytes()


def raising(error):
    def call(*_args, **_options):
        raise error

    return call


def test_sys_exit_of_the_users_code_ends_its_row_alone(place):
    place.network()
    (place.folder / "sibling.py").write_text("import sys\nsys.exit(0)\n")
    result = place.run(f'{CASE.format("a")}model = "net.py:build"\n{MERGE}')
    assert [row.outcome for row in result.rows] == ["error", "held"]


def test_the_first_row_that_does_not_hold_is_the_last_one(place):
    cases = f"{CASE.format('a')}{MERGE}"
    assert [row.outcome for row in place.run(cases).rows] == ["error", "held"]
    result = place.run(cases, exitfirst=True)
    assert [row.outcome for row in result.rows] == ["error"]
    assert (result.left, result.status) == (1, 2)


def test_cases_are_chosen_by_name(place):
    cases = "".join(f"{CASE.format(name)}alpha = 4\n" for name in ("fr-1", "fr-2", "de"))
    assert [row.case for row in place.run(cases, case=["fr-*"]).rows] == ["fr-1", "fr-2"]
    assert [row.case for row in place.run(cases, case=["de", "fr-2"]).rows] == ["fr-2", "de"]
    with pytest.raises(UsageError, match=r"no case has the name 'fr_1'.*\n.*did you mean fr-1"):
        place.run(cases, case=["fr_1"])


def test_a_case_without_its_extra_is_skipped_and_strict_fails(place):
    case = f'extras = ["no-such-package-xyz"]'  # noqa: F541
    row = place.row(case)
    assert (row.outcome, row.status) == ("skipped", 0)
    assert row.cause == "not installed: no-such-package-xyz"
    strict = place.row(case, strict=True)
    assert (strict.outcome, strict.status) == ("failed", 5)
    assert place.row('extras = ["hf", "torch"]', strict=True).outcome == "held"


def test_a_required_level_that_could_not_run_fails(place):
    assert place.row('require = ["weights"]').outcome == "held"
    row = place.row('require = ["weights", "model"]')
    assert (row.outcome, row.status) == ("failed", 5)
    assert row.cause.startswith("level model is required and was not proven: ")
    assert "--require model" in row.command
    assert "verify has no such level" not in row.cause


def test_models_of_two_cases_may_have_siblings_of_one_name(place, tmp_path):
    """Each in a folder of its own that its file puts on sys.path, as training scripts do."""
    shown = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sibling.py").write_text(f"SCALE = 1.0\nNAME = {name!r}\n")
        (folder / "net.py").write_text(
            "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\n"
            "import loralib, sibling\nfrom torch import nn\nINPUTS = 'x=float32[batch,8]'\n"
            "def build():\n"
            f"    assert sibling.NAME == {name!r}, sibling.NAME\n"
            "    return nn.ModuleDict({'m': loralib.Linear(8, 12, r=2, lora_alpha=4),"
            " 'n': nn.Linear(12, 4, bias=False)})\n"
        )
        shown.append(f'{CASE.format(name)}model = "{name}/net.py:build"\nproof = "weights"\n')
    result = place.run("".join(shown))
    assert [row.cause for row in result.rows] == ["", ""]


def test_a_path_in_a_package(place, monkeypatch):
    package = place.folder / "a_package_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (place.folder / "base.safetensors").rename(package / "base.safetensors")
    monkeypatch.syspath_prepend(place.folder)
    case = MERGE.replace('"base.s', '"package:a_package_of_weights/base.s')
    assert place.run(case).passed
    [row] = place.run(case.replace("a_package_of", "no_package_of")).rows
    assert (row.outcome, row.status) == ("error", 3)
    assert row.cause == "the package no_package_of_weights is not installed"
    [row] = place.run(case.replace("weights/base", "weights/../base")).rows
    assert (row.outcome, row.status) == ("error", 2)


def test_outputs_are_kept_by_case_and_replaced(place):
    keep = place.folder / "kept"
    cases = MERGE + f"{CASE.format('Fr/../1')}alpha = 4\n" + f"{CASE.format('fr 1')}alpha = 4\n"
    for _ in range(2):
        assert place.run(cases, keep=keep).passed
    assert {str(path.relative_to(keep)) for path in keep.glob("*/*.safetensors")} == {
        "tiny/merged.safetensors",
        "fr-..-1/merged.safetensors",
        "fr-1/merged.safetensors",
    }


PASSED = Check("merged elements", True, 0.0, 0.0, level="weights")  # noqa: FBT003


def test_the_rows_of_a_case_give_each_its_own_verb(place, monkeypatch):
    seen = []

    def record(verb):
        def call(*args, **options):
            seen.append((verb, args[2].name, options.get("precision"), options.get("seed")))
            return lora_export.Report(verb, checks=(PASSED,))

        return call

    monkeypatch.setattr(api, "merge", record("merge"))
    monkeypatch.setattr(api, "export_onnx", record("onnx"))
    result = place.run(
        f'{MERGE}artefacts = ["merge", "onnx", "onnx:int8"]\nseed = 3\ncapture-cache = "c"\n'
    )
    assert [row.outcome for row in result.rows] == ["held"] * 3
    assert seen == [
        ("merge", "merged.safetensors", None, 3),
        ("onnx", "model.onnx", None, 3),
        ("onnx", "model-int8.onnx", "int8", 3),
    ]
    assert [shlex.split(row.command)[1] for row in result.rows] == ["merge", "onnx", "onnx"]


def test_an_artefact_alone_is_compared_with_its_manifest(place):
    base, adapters = place.folder / "base.safetensors", [place.folder / "lora.safetensors"]
    lora_export.merge(base, adapters, place.folder / "out.safetensors", alpha=4)
    [row] = place.run('[[case]]\nname = "a"\nartefact = "out.safetensors"\n').rows
    assert (row.outcome, row.verdict.word) == ("held", "UNCHANGED")
    assert torch.is_tensor(load_file(place.folder / "out.safetensors")["m.weight"])


@pytest.mark.parametrize(("passed", "what"), [(None, "no proof"), (False, "a failed proof")])
def test_an_artefact_alone_without_a_recorded_proof_fails(passed, what, place):
    base, adapters = place.folder / "base.safetensors", [place.folder / "lora.safetensors"]
    out = place.folder / "out.safetensors"
    lora_export.merge(base, adapters, out, alpha=4, verify=False)
    if passed is False:
        manifest = place.folder / "out.safetensors.lora_export.json"
        document = json.loads(manifest.read_text())
        document["verification"] = {"passed": False, "checks": []}
        manifest.write_text(json.dumps(document))
    [row] = place.run('[[case]]\nname = "a"\nartefact = "out.safetensors"\n').rows
    assert (row.outcome, row.status) == ("failed", 5)
    assert row.cause.startswith(f"its manifest records {what}; ")


def test_a_result_that_nobody_proved_fails(place, monkeypatch):
    monkeypatch.setattr(api, "merge", lambda *_, **__: lora_export.Report("merge"))
    assert place.row().cause == "nothing was proven: merged without a proof (--no-verify)"


def test_what_a_progress_function_raises_is_no_outcome_of_a_row(place):
    error = LookupError("of the caller")
    with pytest.raises(LookupError) as raised:
        place.row(progress=raising(error))
    assert raised.value is error
