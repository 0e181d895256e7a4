"""The names that a user may rely on, with their parameters: a change of one is a decision."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap

import pytest

import lora_export

# Parameter, default: what merge, export_onnx and verify share.
ADAPTER = {
    "alpha": None, "enable_lora": None, "fan_in_fan_out": None, "hparams": None, "dialect": None,
    "weight": (), "recipe": "auto", "tied": "untie", "rename": None, "allow_unmatched": (),
    "allow_new": (), "allow_noop": False, "unmerged_base": False, "ignore": (), "trust_file": None,
    "strict": False, "follow_links": False,
}  # fmt: skip
PROOF = {"input": (), "inputs": None, "atol": None, "rtol": None, "seed": 0, "proof": "model",
         "require": None}  # fmt: skip
CAPTURE = {"capture_cache": None, "no_capture_cache": False, "provider": ()}
NEEDED = inspect.Parameter.empty

# Of each function: what may be given by its place, and what only by its name.
FACE = {
    "merge": (
        {"base": NEEDED, "adapters": NEEDED, "output": None},
        {
            "model": None, "task": None, "verify": True, "dry_run": False, "force": False,
            "undo": None, "jobs": None, "max_shard_size": None, "report": None, "progress": None,
            **ADAPTER, **PROOF, "tokenizer": None, "dtype": None,
        },
    ),
    "export_onnx": (
        {"base": NEEDED, "adapters": NEEDED, "output": None},
        {
            "model": None, "task": None, "kv_cache": False, "static": (),
            "opset": None, "precision": "fp32", "int8": None, "layout": "onnx",
            "allow_lossy": False,
            "verify": True, "dry_run": False, "force": False,
            "report": None, "progress": None, **CAPTURE, **ADAPTER, **PROOF,
        },
    ),
    "verify": (
        {"artifact": NEEDED},
        {
            "base": None, "adapters": (), "model": None, "task": None, "kv_cache": False,
            "static": (), "opset": None, "precision": None, "layout": None,
            "allow_lossy": False, "report": None, "progress": None, "dtype": None,
            **CAPTURE, **ADAPTER, **PROOF,
        },
    ),
    "unmerge": (
        {"merged": NEEDED, "output": NEEDED},
        {"undo": None, "jobs": None, "force": False, "follow_links": False, "progress": None},
    ),
    "inspect": ({"path": NEEDED}, {}),
    "parity": (
        {"suite": NEEDED},
        {
            "case": (), "junit": None, "report": None, "update": False, "no_cache": False,
            "keep": None, "exitfirst": False, "strict": False, "progress": None,
            "on_row": None,
        },
    ),
}  # fmt: skip


def test_these_names_are_public():
    assert set(lora_export.__all__) == {*FACE, "Progress", "Report", "errors"}
    assert {*FACE, "Progress", "Report", "errors", "__version__"} <= set(dir(lora_export))
    assert lora_export.errors.LoraExportError.status
    assert lora_export.Report.passed
    plain = {name for name in dir(lora_export) if not name.startswith("_")}
    loaded = {name for name in plain if inspect.ismodule(getattr(lora_export, name, None))}
    assert plain - loaded == {
        *FACE, "Progress", "Report", "annotations", "TYPE_CHECKING", "import_module",
    }  # fmt: skip


@pytest.mark.parametrize("name", FACE)
def test_a_function_has_these_parameters(name):
    by_place, by_name = FACE[name]
    found = inspect.signature(getattr(lora_export, name)).parameters.values()
    places = {one.name: one.default for one in found if one.kind is one.POSITIONAL_OR_KEYWORD}
    names = {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}
    assert (places, names) == (by_place, by_name)
    assert len(found) == len(by_place) + len(by_name)


@pytest.mark.parametrize("name", FACE)
def test_a_docstring_explains_every_parameter_and_the_errors(name):
    function = getattr(lora_export, name)
    text = inspect.getdoc(function)
    for section in ("Example:", "Args:", "Returns:", "Raises:"):
        assert f"\n{section}\n" in text
    own = set(inspect.signature(function, follow_wrapped=True).parameters) - {*ADAPTER, *PROOF}
    explained = set(re.findall(r"^    (\w+): ", text.partition("\nArgs:")[2], re.MULTILINE))
    assert own - {"tokenizer"} <= explained


def test_any_other_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'marge'"):
        lora_export.marge  # noqa: B018 - asking for it is the point


def test_the_import_loads_its_version_alone_and_a_function_no_tensor_library():
    code = (
        "import sys, lora_export\n"
        "print([m for m in sys.modules if m.startswith('lora_export.')])\n"
        "lora_export.merge\n"
        "print(sorted({'torch', 'numpy', 'onnx', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['lora_export.version']\n[]\n"


def test_the_tour_runs(root, tmp_path, monkeypatch, capsys):
    _, _, tour = lora_export.__doc__.partition("samples/:\n\n")
    code = textwrap.dedent(tour.partition("\nEach of the first five returns")[0])
    assert all(f"lora_export.{name}(" in code for name in FACE)
    (tmp_path / "samples").symlink_to(root / "samples")
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(code, values)
    assert values["planned"].dry_run
    assert values["found"]["kind"] == "adapter"
    assert capsys.readouterr().out.startswith("True ")
    base = root / "samples" / "chargpt" / "base.safetensors"
    assert (tmp_path / "restored.safetensors").read_bytes() == base.read_bytes()
    assert (tmp_path / "digits.onnx").stat().st_size > 0
