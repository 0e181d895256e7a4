"""Time and memory of the proof as a model, beside the merge that it proves.

In every round, a merge without a proof and one with both levels run in turn. The time of the
witnesses is what the report names "proof as a model". The ratio to the unverified merge is taken
within a round; the median over the rounds is printed. Memory is the peak of anonymous memory, in a
run that is not timed, beside that of the unverified merge.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from make_llama import SHAPES, make_adapters, make_base
from running import lora_export, run

MOST = 2.5
"""Times the unverified merge that the witnesses may take."""

ROOM = 600 << 20
"""Bytes that the proof may take beside torch, the adapter and the activations."""

TASK = ["--task", "text-generation"]
UNVERIFIED = [*TASK, "--no-verify"]
REQUIRED = [*TASK, "--require", "model"]


def made(shape: str, data: Path) -> tuple[Path, Path]:
    """Return base and adapter of a shape, all linear layers of rank 16; they are made once."""
    folder = data / shape
    base, adapter = folder / "base", folder / "all-peft"
    if not (base / "config.json").exists():
        make_base(SHAPES[shape], base)
    if not adapter.exists():
        make_adapters(SHAPES[shape], folder, "all")
    return base, adapter


def witnesses(command: list[str]) -> float:
    """Run a verified merge; return the seconds that its witnesses took."""
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["seconds"]["proof as a model"])


def measure(shape: str, data: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one shape: ratios by round, seconds, and bytes of memory."""
    base, adapter = made(shape, data)
    output = data / "out"
    merge = [*lora_export(), "merge", str(base), str(adapter), "-o", str(output)]
    plain = run([*merge, *UNVERIFIED], sampled=True)
    shutil.rmtree(output)
    proven = run([*merge, *REQUIRED], sampled=True)
    seconds = []
    for turn in range(rounds):
        took: dict[str, float] = {}
        for name in ("plain", "proven")[:: 1 if turn % 2 == 0 else -1]:
            shutil.rmtree(output, ignore_errors=True)
            if name == "plain":
                took[name] = run([*merge, *UNVERIFIED]).wall
            else:
                took[name] = witnesses([*merge, *REQUIRED])
        seconds.append(took)
    shutil.rmtree(output, ignore_errors=True)
    return {
        "shape": shape,
        "seconds": seconds,
        "ratio": median(one["proven"] / one["plain"] for one in seconds),
        "memory": proven.anonymous,
        "unverified memory": plain.anonymous,
        "adapter": (adapter / "adapter_model.safetensors").stat().st_size,
    }


def main() -> None:
    """Measure the shapes, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: 1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--data", type=Path, help="where the bases are kept (default: a temp folder)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shape in given.shape or ("1b",):
            found = measure(shape, given.data or Path(folder), given.rounds)
            rounds = ", ".join(
                f"{one['proven']:.1f} s / {one['plain']:.1f} s" for one in found["seconds"]
            )
            print(
                f"{shape}: witnesses / unverified merge {found['ratio']:.2f}, at most {MOST} "
                f"({rounds}); anonymous memory {found['memory'] / 2**20:.0f} MB, unverified "
                f"{found['unverified memory'] / 2**20:.0f} MB, adapter "
                f"{found['adapter'] / 2**20:.0f} MB"
            )


if __name__ == "__main__":
    main()
