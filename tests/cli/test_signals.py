"""Signals to stop at random moments of whole runs, from the first import to the last line.

A run ends with the signal's status and leaves nothing, or it had published before and ends with 0.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from lora_export.checkpoint.output.interrupts import status_of

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 300
FEW, SOME, MANY = 10, 40, 500

PROGRAM = """
import os, signal, sys
log = int(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
os.write(log, b"start ")
from lora_export.checkpoint.output.interrupts import Interrupts
handle = Interrupts.handle
def logged(self, number, frame):
    os.write(log, b"held " if self.depth else b"stop ")
    handle(self, number, frame)
Interrupts.handle = logged
from lora_export.cli import main
sys.argv[0] = "lora-export"
main()
"""
"""Runs the program; reports where it starts, and whether a signal was held back when it came."""

NETWORK = """
import torch
INPUTS = "x=float32[batch,8]"
def build():
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 4))
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended that was sent a signal."""

    status: int
    stderr: str
    log: str
    left: list[str]


@dataclass
class Runs:
    """Runs of one command, each with an output folder of its own."""

    folder: Path
    words: tuple[str, ...]
    published: list[str]
    count: int = 0
    seconds: float = 0.0

    def run(self, number: int | None = None, delay: float = 0.0) -> Ended:
        """Run the command; send it a signal `delay` seconds after it has started."""
        self.count += 1
        place = self.folder / f"{self.words[0]}-{self.count}"
        for name in ("out", "temporary"):
            (place / name).mkdir(parents=True)
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(writer), *self._words(place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **_settings(place)},
            pass_fds=(writer,),
        )
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as log:
            assert log.read(6) == b"start "
            started = time.monotonic()
            if number is not None:
                time.sleep(delay)
                process.send_signal(number)
            _, stderr = process.communicate(timeout=PATIENCE)
            self.seconds = self.seconds or time.monotonic() - started
            return Ended(process.returncode, stderr, log.read().decode(), _left(place))

    def _words(self, place: Path) -> list[str]:
        return [word.replace("OUT", str(place / "out")) for word in self.words]

    def faults(self, number: int, delay: float) -> str:
        """Send a signal to one run; return what is wrong with how that ended, else nothing."""
        ended = self.run(number, delay)
        # Python's own status stands until the program's first line of its own.
        if ended.status in {status_of(number), -number}:
            right = not ended.left and (ended.status < 0 or "Traceback" not in ended.stderr)
        else:
            right = ended.status == 0 and ended.left == self.published and "stop" not in ended.log
        return "" if right else f"{signal.Signals(number).name} after {delay:.3f} s: {ended}"


def _settings(place: Path) -> dict[str, str]:
    folders = {"TMPDIR": place / "temporary", "LORA_EXPORT_CAPTURE_CACHE": place / "captures"}
    return {"PYTHONWARNINGS": "ignore", **{name: str(path) for name, path in folders.items()}}


def _left(place: Path) -> list[str]:
    """List the output, and our own temporary files: torch leaves some of its own."""
    temporary = [*place.glob("temporary/tmp*"), *place.glob("temporary/lora-export*")]
    found = [*place.glob("out/**/*"), *place.glob("captures/*.part"), *temporary]
    return sorted(path.relative_to(place).as_posix() for path in found)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Return the runs of merge, verify and onnx on a small network, each run once unharmed."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "network.py").write_text(NETWORK)
    torch.manual_seed(0)
    base = {"0.weight": torch.randn(12, 8), "0.bias": torch.randn(12)}
    save_file(
        {**base, "2.weight": torch.randn(4, 12), "2.bias": torch.randn(4)},
        folder / "base.safetensors",
    )
    factors = {"0.lora_A": torch.randn(2, 8), "0.lora_B": torch.randn(12, 2)}
    save_file(factors, folder / "lora.safetensors")
    paths = [str(folder / name) for name in ("base.safetensors", "lora.safetensors")]
    model = ("--alpha", "4", "--model", f"{folder / 'network.py'}:build")
    merged = str(folder / "merge-1" / "out" / "m.safetensors")
    names = ("m.safetensors", "m.safetensors.lora_export.json", "m.undo")
    published = [f"out/{name}" for name in names]
    merge = ("merge", *paths, "-o", "OUT/m.safetensors", "--undo", "OUT/m.undo", *model)
    verify = ("verify", merged, "--base", paths[0], "--adapter", paths[1], *model)
    onnx = ("onnx", *paths, "-o", "OUT/m.onnx", *model)
    graph = ["out/m.onnx", "out/m.onnx.lora_export.json"]
    runs = [Runs(folder, merge, published), Runs(folder, verify, []), Runs(folder, onnx, graph)]
    for each in runs:
        whole = each.run()
        assert (whole.status, whole.left) == (0, each.published), whole
    return runs


TURNS = (0, 1, 0, 1, 2)
"""The commands in turn: an export takes twice as long as the others."""


def moments(commands, number):
    """Yield (runs, signal, delay), spread over the whole of each command and a little beyond."""
    chance = random.Random(number)
    for place in range(number):
        runs = commands[TURNS[place % len(TURNS)]]
        which = SIGNALS[place // len(TURNS) % len(SIGNALS)]
        yield runs, which, chance.uniform(0, 1.05 * runs.seconds)


@pytest.mark.parametrize(
    "number",
    [
        FEW,
        pytest.param(SOME, marks=pytest.mark.slow),
        pytest.param(MANY, marks=pytest.mark.faults),
    ],
    ids=["few", "some", "many"],
)
def test_a_signal_at_any_moment_is_neither_lost_nor_a_failure(commands, number):
    found = [runs.faults(which, delay) for runs, which, delay in moments(commands, number)]
    faults = [fault for fault in found if fault]
    assert not faults, f"{len(faults)} of {number}: {faults[:3]}"
