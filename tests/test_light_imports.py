"""What needs no arithmetic loads no tensor library: help, inspection, dry runs and refusals.

torch alone takes more than a second to import; a refusal must not cost that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers")

# Runs the program as its console script does, then says what it left behind.
CHILD = """
import json, sys
from lora_export.cli import main
sys.argv[0] = "lora-export"
try:
    status = main()
except SystemExit as stop:
    status = stop.code
loaded = sorted(name for name in sys.modules if "." not in name)
print(json.dumps({"status": status or 0, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files: a base, adapters in both formats, and files to refuse."""
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0).standard_normal
    weight, a, b = (draw(shape).astype("f4") for shape in ((6, 4), (2, 4), (6, 2)))
    save_file({"fc.weight": weight, "out.weight": weight}, folder / "base.safetensors")
    save_file({"fc.lora_A": a, "fc.lora_B": b}, folder / "lora.safetensors")
    (folder / "named").mkdir()
    save_file({"fc.weight": weight}, folder / "named" / "model.safetensors")
    (folder / "named" / "config.json").write_text('{"architectures": ["FlatModel"]}')
    save_file({"gone.lora_A": a, "gone.lora_B": b}, folder / "unfit.safetensors")
    state = {"fc.lora_A": torch.from_numpy(a), "fc.lora_B": torch.from_numpy(b)}
    torch.save({"model_state_dict": state}, folder / "lora.pt")
    whole = (folder / "lora.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[:-1])
    (folder / "exists.safetensors").write_bytes(b"")
    case = '[[case]]\nname = "{}"\nbase = "base.safetensors"\nadapters = ["unfit.safetensors"]\n'
    text = f"format = 1\n{case.format('unfit')}alpha = 4\nexpect = {{ exit = 4 }}\n"
    (folder / "suite.toml").write_text(text)
    (folder / "wrong.toml").write_text(f"{text}aplha = 4\n")
    return folder


def run(files: Path, *arguments: str) -> tuple[int, list[str]]:
    """Status and loaded modules of the program, started in `files`."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=files,
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["status"], answer["loaded"]


MERGE = ("merge", "base.safetensors")
DRY = ("--alpha", "4", "-o", "new.safetensors", "--dry-run")

CASES = {
    "--help": (0, ("--help",)),
    "--version": (0, ("--version",)),
    "merge --help": (0, ("merge", "--help")),
    "onnx --help": (0, ("onnx", "--help")),
    "inspect a base": (0, ("inspect", "base.safetensors")),
    "inspect an adapter": (0, ("inspect", "lora.safetensors", "--json")),
    "inspect a pickle": (0, ("inspect", "lora.pt")),
    "dry run": (0, (*MERGE, "lora.safetensors", *DRY)),
    "dry run as JSON": (0, (*MERGE, "lora.safetensors", *DRY, "--json")),
    "dry run of a pickle": (0, (*MERGE, "lora.pt", *DRY)),
    "ONNX dry run": (
        0,
        ("onnx", "named", "lora.safetensors", "--alpha", "4", "--dry-run"),
    ),
    "ONNX dry run without a model": (
        2,
        ("onnx", "base.safetensors", "lora.safetensors", "--alpha", "4", "--dry-run"),
    ),
    "an unknown option": (2, (*MERGE, "lora.safetensors", "--no-such-option")),
    "a missing alpha": (2, (*MERGE, "lora.pt", "-o", "new.safetensors")),
    "ONNX without a model": (
        2,
        ("onnx", "base.safetensors", "lora.safetensors", "--alpha", "4", "-o", "new.onnx"),
    ),
    "a damaged adapter": (3, (*MERGE, "damaged.safetensors", *DRY[:-1])),
    "an adapter that does not fit": (4, (*MERGE, "unfit.safetensors", *DRY[:-1])),
    "parity --help": (0, ("parity", "--help")),
    "a suite of refusals": (0, ("parity", "suite.toml", "--junit", "junit.xml")),
    "a wrong suite": (2, ("parity", "wrong.toml")),
    "a first suite": (0, ("parity", "--init", "base.safetensors", "lora.pt")),
    "an output that exists": (
        6,
        (*MERGE, "lora.safetensors", "--alpha", "4", "-o", "exists.safetensors"),
    ),
}


@pytest.mark.parametrize(("status", "arguments"), CASES.values(), ids=CASES.keys())
def test_loads_no_tensor_library(files: Path, status: int, arguments: tuple[str, ...]) -> None:
    found, loaded = run(files, *arguments)
    assert found == status
    assert sorted(set(HEAVY) & set(loaded)) == []
    assert "lora_export" in loaded
    assert not list(files.glob("new*"))


def test_the_probe_sees_a_library() -> None:
    child = f"import numpy\n{CHILD}"
    done = subprocess.run(
        [sys.executable, "-c", child, "--version"], capture_output=True, text=True, check=True
    )
    assert "numpy" in json.loads(done.stdout.splitlines()[-1])["loaded"]
