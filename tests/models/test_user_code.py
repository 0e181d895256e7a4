"""What the code behind --model may do: each fault is told as one, and none is a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import UsageError

HEAD = """\
import sys
import torch
from torch import nn
from torch.nn import functional as F
INPUTS = "x=float32[batch,5]"
"""
MODEL = """
class Custom(Exception): pass
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 6)
    def forward(self, x):
        y = self.fc(x)
        {forward}
        return y
def build():
    {build}
    return Net()
"""


@pytest.fixture
def case(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc.weight": (6, 5), "fc.bias": (6,), "fc.lora_A": (2, 5), "fc.lora_B": (6, 2)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for file, part in (("base", ("weight", "bias")), ("lora", ("lora_A", "lora_B"))):
        save_file(
            {n: t for n, t in made.items() if n.endswith(part)}, tmp_path / f"{file}.safetensors"
        )
    return tmp_path


def merged(case, code, **options):
    (case / "net.py").write_text(code)
    model = f"{case}/net.py:build"
    files = (case / "base.safetensors", [case / "lora.safetensors"], case / "out.safetensors")
    return merge(*files, model=model, alpha=4.0, **options)


def net(forward="pass", build="pass"):
    return HEAD + MODEL.format(forward=forward, build=build)


REFUSED = {
    "exit while imported": (HEAD + "sys.exit(0)", "cannot be imported: SystemExit: 0"),
    "exit in the factory": (net(build="sys.exit(0)"), "the factory raised SystemExit: 0"),
    "exit in forward": (net("sys.exit()"), "called with x.1, 5.: SystemExit"),
    "an exception of one's own": (net("raise Custom('q')"), "called with .*: Custom: q"),
    "the same object": (
        net(build="pass") + "ONE = Net()\ndef build(): return ONE",
        "a module that an earlier call returned already",
    ),
    "the same inside": (
        net() + "ONE = Net()\nclass Other(nn.Module): pass\n"
        "def build():\n    other = Other(); other.fc = ONE.fc; return other",
        "a module that an earlier call returned already",
    ),
    "dropout": (net("y = F.dropout(y, 0.001)"), "draws random numbers"),
    "state": (net("self.k = getattr(self, 'k', 0) + 1; y = y + self.k"), "another output.* again"),
    "numpy": (net("import numpy; y = y + numpy.random.random()"), "another output.* again"),
    "bfloat16": (net("y = y.bfloat16()"), "output: the model returns bfloat16"),
    "INPUTS of a number": (net() + "INPUTS = 3", "INPUTS = 3 is no text"),
    "INPUTS of numbers": (net() + "INPUTS = [3]", r"INPUTS = \[3\] is no text"),
    "INPUTS of bytes": (net() + "INPUTS = b'x'", "is no text"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, case):
    code, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        merged(case, code)
    assert not (case / "out.safetensors").exists()


ACCEPTED = {
    "float16": "y = y.half()",
    "complex": "y = torch.complex(torch.zeros_like(y), y)",
    "masked": "y = y.masked_fill(torch.arange(6) < 3, -torch.inf)",
    "several": "y = {'a': y, 'b': (x, y * 2)}",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name, case):
    assert merged(case, net(ACCEPTED[name])).passed


def test_modules_without_parameters_may_be_shared_by_all_models(case):
    assert merged(case, net("y = ACT(y)") + "ACT = nn.Tanh()").passed


def test_stdout_holds_the_result_alone(case):
    code = HEAD + "print('import')\n" + MODEL.format(forward="print('run')", build="print('make')")
    (case / "net.py").write_text(code)
    words = ["merge", "base.safetensors", "lora.safetensors", "-o", "out.safetensors", "--alpha"]
    program = Path(sys.executable).with_name("lora-export")
    run = subprocess.run(
        [program, *words, "4", "--model", "net.py:build", "--json"],
        cwd=case, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(run.stdout)["ok"]
    assert {"import", "make", "run"} <= set(run.stderr.split())
