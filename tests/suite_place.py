"""A folder with a tiny base and its adapter, in which suites are written and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

import lora_export

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.suites.outcome import Row, SuiteResult

NETWORK = """
import pathlib
import sys

import loralib
from torch import nn

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import sibling

INPUTS = "x=float32[batch,8]"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = loralib.Linear(8, 12, r=2, lora_alpha=4)
        self.n = nn.Linear(12, 4, bias=False)

    def forward(self, x):
        return self.n(self.m(x) * sibling.SCALE) + float((HERE / "shift.txt").read_text())


def build():
    return Net()
"""


class Place:
    """A folder with base, adapter and suites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        base = {
            "m.weight": torch.randn(12, 8),
            "m.bias": torch.randn(12),
            "n.weight": torch.randn(4, 12),
        }
        adapter = {"m.lora_A": torch.randn(2, 8), "m.lora_B": torch.randn(12, 2)}
        save_file(base, folder / "base.safetensors")
        save_file(adapter, folder / "lora.safetensors")
        save_file(
            {k.replace("m.", "gone."): v for k, v in adapter.items()}, folder / "other.safetensors"
        )

    def network(self) -> None:
        (self.folder / "net.py").write_text(NETWORK)
        (self.folder / "sibling.py").write_text("SCALE = 1.0\n")
        (self.folder / "shift.txt").write_text("0.5")

    def write(self, text: str, name: str = "suite.toml") -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, cases: str, **settings: object) -> SuiteResult:
        """Run a suite of these cases."""
        return lora_export.parity(self.write(f"format = 1\n{cases}"), **settings)

    def row(self, lines: str = "", **settings: object) -> Row:
        """Run a suite of one merge, with further lines in its case."""
        [row] = self.run(f"{MERGE}{lines}\n", **settings).rows
        return row


CASE = '[[case]]\nname = "{}"\nbase = "base.safetensors"\nadapters = ["lora.safetensors"]\n'
MERGE = f"{CASE.format('tiny')}alpha = 4\n"
"""A case that holds, without a network."""
