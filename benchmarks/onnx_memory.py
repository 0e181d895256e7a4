"""Memory and time of `lora-export onnx`, for random weights of a given size.

The figure is the peak of anonymous memory, sampled over the process, as a multiple of the float32
weights. It is taken with and without verification. Memory that does not grow with the weights
(interpreter, torch, ONNX Runtime, the outputs of the probes) is given as a constant.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from make_llama import ALPHA, Shape, make_adapters, make_base
from running import lora_export, run

CONSTANT = 900 << 20
"""Interpreter, torch, transformers and ONNX Runtime with all they import, and one large tensor."""
LIMIT = 2.1
"""Times the float32 weights: the run in float64 takes 2."""
SHAPE = Shape(2048, 1, 5632, 16, 8, 8000)
VERIFIED = "onnx"
UNVERIFIED = "onnx --no-verify"
MODES = {VERIFIED: [], UNVERIFIED: ["--no-verify"]}


def shape_of(size: int) -> Shape:
    """Return a Llama with so many layers that its float32 weights are about `size` bytes."""
    fixed = float32_bytes(replace(SHAPE, layers=0))
    layer = float32_bytes(SHAPE) - fixed
    return replace(SHAPE, layers=max(1, round((size - fixed) / layer)))


def float32_bytes(shape: Shape) -> int:
    """Return the bytes of the weights in float32, as they are run and written."""
    total = 0
    for dims in shape.weights().values():
        elements = 1
        for dim in dims:
            elements *= dim
        total += 4 * elements
    return total


def make(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """Write the base, with the name of its class, and an adapter: (base, adapter)."""
    base = folder / "base"
    make_base(shape, base, shards=2)
    config = json.loads((base / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (base / "config.json").write_text(json.dumps(config))
    adapter, _ = make_adapters(shape, folder, "qv")
    return base, adapter


def measure(shape: Shape, folder: Path, mode: str) -> dict[str, Any]:
    """Run one export in a new process; return bytes and seconds, and whether the limit is kept."""
    base, adapter = make(shape, folder)
    output = folder / "out" / "model.onnx"
    output.parent.mkdir()
    command = [
        *lora_export(), "onnx", str(base), str(adapter), "--alpha", str(ALPHA),
        "--no-fan-in-fan-out", "--no-capture-cache", "-o", str(output), *MODES[mode],
    ]  # fmt: skip
    taken = run(command, sampled=True)
    weights = float32_bytes(shape)
    return {
        "run": mode,
        "weights": weights,
        "written": sum(file.stat().st_size for file in output.parent.iterdir()),
        "ratio": taken.anonymous / weights,
        "files": len(list(output.parent.iterdir())),
        "allowed": int(LIMIT * weights) + CONSTANT,
        "kept": taken.anonymous <= LIMIT * weights + CONSTANT,
        **asdict(taken),
    }


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.5, help="float32 weights, in 10^9 bytes")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: both")
    parser.add_argument("--folder", type=Path, help="where the models go (default: temporary)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    shape, results = shape_of(int(given.gb * 1e9)), []
    for mode in given.mode or MODES:
        folder = Path(tempfile.mkdtemp(prefix="onnx-memory-", dir=given.folder))
        try:
            results.append(measure(shape, folder, mode))
        finally:
            shutil.rmtree(folder)
    if given.json:
        print(json.dumps({"shape": asdict(shape), "runs": results}, indent=2))
        return
    for one in results:
        print(
            f"{one['run']}: {one['anonymous'] / 1e9:.2f} GB of anonymous memory at the peak, "
            f"{one['ratio']:.2f} x the float32 weights ({one['weights'] / 1e9:.2f} GB), allowed "
            f"{one['allowed'] / 1e9:.2f} GB; {one['wall']:.0f} s, {one['cpu']:.0f} s of processor"
        )


if __name__ == "__main__":
    main()
