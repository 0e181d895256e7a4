"""The contract of the command line: exit statuses, JSON on stdout, errors on stderr."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.cli import main
from lora_export.records import Check
from lora_export.report.document import report_json
from lora_export.report.result import Report, json_text

DIGITS = "samples/digits"


@pytest.fixture
def files(tmp_path):
    base = {"m.weight": torch.randn(12, 8), "n.weight": torch.randn(4, 4)}
    adapter = {"m.lora_A": torch.randn(2, 8), "m.lora_B": torch.randn(12, 2)}
    save_file(base, tmp_path / "base.safetensors")
    torch.save(adapter, tmp_path / "lora.pt")
    torch.save({f"x.{k}": v for k, v in adapter.items()}, tmp_path / "other.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "taken.safetensors").write_bytes(b"")
    return tmp_path


def run(files, *arguments, **settings):
    named = [
        str(files / argument) if argument.endswith((".safetensors", ".pt")) else argument
        for argument in arguments
    ]
    return CliRunner().invoke(main, named, **settings)


GOOD = ("merge", "base.safetensors", "lora.pt", "-o", "out.safetensors", "--alpha", "4")

STATUSES = {
    0: GOOD,
    2: GOOD[:-2],
    3: ("merge", "broken.safetensors", *GOOD[2:]),
    4: ("merge", "base.safetensors", "other.pt", *GOOD[3:], "--rename", "x=y"),
    6: (*GOOD[:4], "taken.safetensors", *GOOD[5:]),
}


@pytest.mark.parametrize("status", STATUSES)
def test_exit_status(status, files):
    result = run(files, *STATUSES[status])
    assert result.exit_code == status, result.output
    assert ("error:" in result.stderr) is (status != 0)
    assert "Traceback" not in result.output


@pytest.mark.parametrize("status", STATUSES)
def test_json_is_one_object_whatever_happens(status, files):
    result = run(files, *STATUSES[status], "--json")
    document = json.loads(result.stdout)
    assert document["command"] == "merge"
    assert document["ok"] is (status == 0)
    assert {"plan", "tensors", "verification", "files", "warnings", "error"} <= document.keys()
    if status:
        assert document["error"]["message"]
        assert document["error"]["code"]
        assert {"where", "hint"} <= document["error"].keys()
    else:
        assert document["tensors"] == {"total": 2, "changed": 1, "added": 0}
        check = document["verification"]["checks"][0]
        assert {"name", "passed", "worst", "tolerance", "where"} <= check.keys()


def test_whose_tokenizer_is_wanted(files):
    (files / "base").mkdir()
    (files / "base.safetensors").rename(files / "base" / "model.safetensors")
    (files / "base" / "vocab.txt").write_text("base")
    (files / "tokenizer.json").write_text("adapter")
    paths = [str(files / name) for name in ("base", "lora.pt", "out")]
    command = ["merge", *paths[:2], "-o", paths[2], "--alpha", "4", "--tokenizer", "adapter"]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    listed = {f["name"]: f["action"] for f in json.loads(result.stdout)["plan"]["side_files"]}
    assert listed == {"tokenizer.json": "edit", "README.md": "edit"}
    assert (files / "out" / "tokenizer.json").read_text() == "adapter"


def test_a_usage_error_of_click_is_json_too(files):
    result = run(files, "merge", "base.safetensors", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["bogus", "--json"], {}),
        (["--json"], {}),
        (["merge", "base.safetensors", "lora.pt", "--alpha", "abc", "--json"], {}),
        (["bogus"], {"LORA_EXPORT_JSON": "1"}),
        (["merge", "base.safetensors"], {"LORA_EXPORT_JSON": "true"}),
        (["merge", "base.safetensors", "lora.pt", "--bogus"], {"LORA_EXPORT_JSON": "1"}),
    ],
)
def test_every_usage_error_is_json_when_asked_for(words, env, files):
    result = run(files, *words, env=env)
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert (document["ok"], document["error"]["code"]) == (False, "usage")
    assert document["command"] == ("merge" if words[0] == "merge" else "")


def raising(error):
    def call(*_args, **_options):
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ZeroDivisionError("planted"), 1, "bug"),
        (MemoryError(), 1, "bug"),
        (GeneratorExit(), 1, "bug"),
        (SystemExit(0), 2, "usage"),
        (SystemExit(None), 2, "usage"),
        (SystemExit("text"), 2, "usage"),
        (SystemExit(143), 143, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_nothing_that_stops_the_work_looks_like_success(error, status, code, files, monkeypatch):
    monkeypatch.setattr("lora_export.api.merge", raising(error))
    result = run(files, *GOOD, "--json")
    assert result.exit_code == status
    document = json.loads(result.stdout)
    assert (document["ok"], document["error"]["code"]) == (False, code)


def test_what_the_users_model_prints_is_no_result(files, monkeypatch):
    def chatty(*_args, **_options):
        sys.stdout.write("building")
        return Report("merge")

    monkeypatch.setattr("lora_export.api.merge", chatty)
    result = run(files, *GOOD, "--json")
    assert json.loads(result.stdout)["ok"] is True
    assert "building" in result.stderr


def test_json_has_no_numbers_that_json_lacks():
    numbers = (float("inf"), float("-inf"), float("nan"), 1.0)
    checks = tuple(Check("x", passed=False, worst=n, tolerance=0) for n in numbers)
    text = json_text(report_json(Report("merge", checks=checks)))

    def refuse(word):
        raise AssertionError(word)

    found = json.loads(text, parse_constant=refuse)["verification"]["checks"]
    assert [check["worst"] for check in found] == ["Infinity", "-Infinity", "NaN", 1.0]


def test_verification_says_no(files, monkeypatch):
    from lora_export.execution.rows import Merge

    right = Merge.rows
    monkeypatch.setattr(Merge, "rows", lambda *arguments: right(*arguments) * 1.001)
    result = run(files, *GOOD, "--json")
    assert result.exit_code == 5
    document = json.loads(result.stdout)
    assert document["verification"]["passed"] is False
    found = document["verification"]["attribution"]
    assert found["stage"] == "merge"
    assert found["module"]
    assert found.keys() == {"stage", "module", "node", "detail"}
    assert not (files / "out.safetensors").exists()
    text = run(files, *GOOD)
    assert "FAILED" in text.stdout
    assert f"stage: merge - {found['module']}: " in text.stderr
    assert "nothing was published" in text.stderr


def test_a_missing_alpha_says_how_to_give_it(files):
    result = run(files, *GOOD[:-2])
    assert "alpha is not in the file" in result.stderr
    assert "--alpha 16" in result.stderr
    assert "--hparams" in result.stderr


def test_a_bug_of_ours_is_status_1_with_a_traceback(files, monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("lora_export.api.merge", broken)
    result = run(files, *GOOD)
    assert result.exit_code == 1
    assert "planted" in result.stderr
    assert "report" in result.stderr


def test_an_interrupt_is_status_130(files, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_export.api.merge", interrupted)
    assert run(files, *GOOD).exit_code == 130


def test_options_come_from_the_environment(files):
    result = run(files, *GOOD[:-2], env={"LORA_EXPORT_ALPHA": "4"})
    assert result.exit_code == 0, result.output


def test_quiet_prints_nothing(files):
    result = run(files, *GOOD, "-q")
    assert result.exit_code == 0
    assert result.stdout == ""


def test_the_summary_shows_facts_checks_and_headroom(files):
    result = run(files, *GOOD)
    for words in ("m ", "linear", "r=2", "alpha=4", "scaling=2", "merged elements", "allowed"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("base", "output", "words"),
    [
        ("base.safetensors", "out", "-o {}/out.safetensors"),
        ("base.safetensors", "v1.5", "-o {}/v1.5.safetensors"),
        ("base.safetensors", "out.onnx", "lora-export onnx"),
        ("base.safetensors", "out.bin", "-o {}/out.safetensors"),
        ("folder", "out.safetensors", "gives a folder"),
        ("folder", "out.onnx", "-o {}/out"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_an_output_whose_name_says_something_else_is_refused(base, output, words, more, files):
    (files / "folder").mkdir()
    save_file({"m.weight": torch.ones(12, 8)}, files / "folder" / "model.safetensors")
    arguments = ["merge", str(files / base), str(files / "lora.pt"), "-o", str(files / output)]
    result = CliRunner().invoke(main, [*arguments, "--alpha", "4", *more])
    assert result.exit_code == 2, result.output
    assert words.format(files) in result.stderr
    assert not (files / output).exists()


def test_dry_run_writes_nothing(files):
    result = run(files, *GOOD, "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert [entry["name"] for entry in document["plan"]["tensors"]] == ["m.weight", "n.weight"]
    assert not (files / "out.safetensors").exists()


@pytest.mark.parametrize("what", ["lora.pt", "base.safetensors"])
def test_inspect(what, files):
    result = run(files, "inspect", what)
    assert result.exit_code == 0
    assert ("loralib" in result.stdout) is (what == "lora.pt")
    found = json.loads(run(files, "inspect", what, "--json").stdout)["found"]
    assert found["kind"] == ("adapter" if what == "lora.pt" else "checkpoint")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    import onnx
    from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

    given = make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 1, 8, None])
    taken = make_tensor_value_info("labels", onnx.TensorProto.INT64, None)
    body = make_graph([], "g", [given], [taken])
    path = tmp_path_factory.mktemp("graph") / "x.onnx"
    onnx.save(make_model(body, opset_imports=[make_opsetid("", 18)]), path)
    return path


PAIR = {"m.lora_A": torch.ones(4, 8), "m.lora_B": torch.ones(12, 2)}
INSPECTED = {
    "wrapper": ({"model_state_dict": PAIR}, ["read from its 'model_state_dict'"], ["wrapper:"]),
    "headings and rank": (
        PAIR,
        ["  module  A       B        rank  dtype\n  m       [4, 8]  [12, 2]  2     F32"],
        ["divided by the kernel size", "read from"],
    ),
    "a convolution's rank": (
        {"m.lora_A": torch.ones(6, 3), "m.lora_B": torch.ones(48, 6)},
        ["divided by the kernel size"],
        [],
    ),
    "words, not JSON": (PAIR, ["full tensors", ": none", "not in the file: alpha, "], ['"', "[]"]),
    "factors and weights": (
        PAIR | {"m.weight": torch.ones(12, 8)},
        ["1 module (m) with both factors and the full weight: the file does not show"],
        [],
    ),
    "no adapter": ({"m.weight": torch.ones(2, 2)}, ["dtypes: F32 1", "none"], ['"', "[]"]),
}


@pytest.mark.parametrize("name", INSPECTED)
def test_text_of_inspect(name, files):
    held, words, absent = INSPECTED[name]
    torch.save(held, files / "held.pt")
    text = run(files, "inspect", "held.pt").stdout
    assert [word for word in words if word not in text] == [], text
    assert [word for word in absent if word in text] == [], text


def test_inspect_onnx(graph):
    result = CliRunner().invoke(main, ["inspect", str(graph)])
    assert result.exit_code == 0, result.output
    for words in ("pixels: float32[batch,1,8,?]", "labels: int64\n", "opset: ai.onnx 18"):
        assert words in f"{result.stdout}\n"


def test_verify_uses_the_facts_of_the_manifest(files):
    run(files, *GOOD)
    result = run(
        files, "verify", "out.safetensors", "--base", "base.safetensors", "--adapter", "lora.pt"
    )
    assert result.exit_code == 0, result.output
    contradicted = run(
        files,
        "verify",
        "out.safetensors",
        "--base",
        "base.safetensors",
        "--adapter",
        "lora.pt",
        "--alpha",
        "5",
    )
    assert contradicted.exit_code == 2
    assert "the manifest" in contradicted.stderr


def test_onnx_without_a_model_says_how_to_name_one(files):
    result = run(files, "onnx", "base.safetensors", "lora.pt", "-o", "x.onnx", "--alpha", "4")
    assert result.exit_code == 2
    assert "--model" in result.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nothing", "names no function"),
        ("absent.module:build", "cannot be imported"),
        ("absent.py:build", "absent.py: no such file\nmore: lora-export explain usage/model-func"),
        ("json:absent", "has no function"),
        ("json:dumps", "the factory raised TypeError"),
        ("os:getcwd", "not a torch.nn.Module"),
    ],
)
def test_a_factory_that_is_none_is_a_usage_error(model, words, files):
    result = run(files, *GOOD, "--model", model)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistyped_command_gets_the_nearest():
    result = CliRunner().invoke(main, ["mrege"])
    assert result.exit_code == 2
    assert "'mrege'" in result.stderr
    assert "'merge'" in result.stderr


def test_a_wrong_value_of_a_variable_names_the_variable(files, monkeypatch):
    monkeypatch.setenv("LORA_EXPORT_DTYPE", "float7")
    result = run(files, *GOOD)
    assert result.exit_code == 2
    assert "Invalid value for LORA_EXPORT_DTYPE: 'float7'" in result.stderr
    given = run(files, *GOOD, "--dtype", "float8")
    assert "Invalid value for '--dtype': 'float8'" in given.stderr


def test_help_is_quick_and_light():
    code = (
        "import sys;"
        "from lora_export.cli import main; main(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["", "merge", "onnx", "verify", "unmerge", "inspect"])
def test_help_is_plain_and_whole(command, files):
    text = run(files, *command.split(), "--help").stdout
    assert "\\b" not in text
    assert "..." not in text.partition("Commands:")[2]


def test_text_of_an_empty_report():
    from lora_export.report.text import report_text

    assert report_text(Report("inspect"), verbose=False) == ""


PROGRAM = """
import atexit, sys
from lora_export.cli import main

class Module:
    def __del__(self):
        print("taken apart")

left = Module()
atexit.register(print, "at exit")
sys.argv[0] = "lora-export"
main()
"""


@pytest.mark.parametrize(("last", "status", "light"), [("4", 0, False), ("nan", 2, True)])
def test_a_program_ends_at_once_when_torch_is_loaded(last, status, light, files):
    named = [str(files / word) if "." in word else word for word in (*GOOD[:-1], last)]
    command = [sys.executable, "-c", PROGRAM, *named]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert (files / "out.safetensors").exists() is not light
    assert ended.stdout.endswith("at exit\ntaken apart\n" if light else "at exit\n")


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "lora_export", "--version"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ended.stdout.startswith("lora-export, version ")
