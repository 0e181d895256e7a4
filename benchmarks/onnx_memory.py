"""Memory and time of `lora-export onnx`, for random weights of a given size.

The figure is the peak of anonymous memory, sampled over the process. It must grow by less than a
tenth of the float32 weights without verification, and by less than half of them with it. What does
not grow with the weights (interpreter, torch, ONNX Runtime, the outputs of the probes) is a
constant. The slope between the smallest and the largest size leaves the constant out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from make_llama import ALPHA, SHAPES, Shape, make_adapters, make_base
from running import lora_export, run

CONSTANT = 1200 << 20
"""Interpreter, torch, transformers and ONNX Runtime with all they import, graph and blocks."""
SIZES = {
    "0.6b": Shape(2048, 8, 5632, 32, 4, 64_000),
    "1.1b": SHAPES["1b"],
    "2.5b": Shape(4096, 8, 14_336, 32, 8, 96_000),
}
"""By name; all but TinyLlama's have few layers, as tracing takes time for each."""
UNVERIFIED, VERIFIED = "onnx --no-verify", "onnx"
CACHED, INT4 = "onnx --kv-cache", "onnx --precision int4"
MODES = {
    UNVERIFIED: (0.1, ["--no-verify"]),
    VERIFIED: (0.5, []),
    CACHED: (0.5, ["--kv-cache"]),
    INT4: (0.5, ["--precision", "int4"]),
}
"""By name: bytes of memory allowed for each byte of float32 weights, and the options."""


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
    slope, options = MODES[mode]
    output = folder / "out" / "model.onnx"
    output.parent.mkdir()
    command = [
        *lora_export(), "onnx", str(base), str(adapter), "--alpha", str(ALPHA),
        "--no-fan-in-fan-out", "--no-capture-cache", "-o", str(output), *options,
    ]  # fmt: skip
    taken = run(command, sampled=True)
    weights = float32_bytes(shape)
    return {
        "run": mode,
        "weights": weights,
        "written": sum(file.stat().st_size for file in output.parent.iterdir()),
        "ratio": taken.anonymous / weights,
        "files": len(list(output.parent.iterdir())),
        "allowed": int(slope * weights) + CONSTANT,
        "kept": taken.anonymous <= slope * weights + CONSTANT,
        **asdict(taken),
    }


def slope_of(runs: list[dict[str, Any]]) -> float:
    """Return the growth of the peak over that of the weights, from the smallest to the largest."""
    small, *_, large = sorted(runs, key=lambda run: run["weights"])
    grown: float = large["anonymous"] - small["anonymous"]
    return grown / float(large["weights"] - small["weights"])


def main() -> None:
    """Measure every mode at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: the first three")
    parser.add_argument("--folder", type=Path, help="where the models go (default: temporary)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    results = []
    for mode in given.mode or (UNVERIFIED, VERIFIED, CACHED):
        for size in given.size or SIZES:
            folder = Path(tempfile.mkdtemp(prefix="onnx-memory-", dir=given.folder))
            try:
                results.append({"size": size, **measure(SIZES[size], folder, mode)})
            finally:
                shutil.rmtree(folder)
            if not given.json:
                print(_line(results[-1]), flush=True)
        of_mode = [run for run in results if run["run"] == mode]
        if len(of_mode) > 1 and not given.json:
            print(f"{mode}: slope {slope_of(of_mode):.3f}", flush=True)
    if given.json:
        print(json.dumps({"runs": results}, indent=2))


def _line(run: dict[str, Any]) -> str:
    stopped = ", stopped" if run["stopped"] else ""
    return (
        f"{run['run']} {run['size']}: {run['anonymous'] / 1e9:.2f} GB of anonymous memory at the "
        f"peak{stopped}, float32 weights {run['weights'] / 1e9:.2f} GB, allowed "
        f"{run['allowed'] / 1e9:.2f} GB; {run['wall']:.0f} s, {run['cpu']:.0f} s of processor"
    )


if __name__ == "__main__":
    main()
