"""Time and memory of planning alone: `merge --dry-run` on a base of very many tensors.

The shards are sparse files with real headers. Planning reads nothing else, and 100,000 tensors take
no room. Three sizes are measured, because one figure does not show whether memory grows linearly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from results import Planned
from running import lora_export, run

TENSORS_A_SHARD = 50
SIDE = 64
SIZES = (25_000, 50_000, 100_000)
QUICK_SIZES = (100, 200, 400)
REPEATS = 3


def make_sparse(folder: Path, tensors: int) -> tuple[Path, Path]:
    """Write a mixture of experts and a loralib file for one of them; return (base, adapter)."""
    from safetensors.numpy import save_file

    base = folder / f"sparse-{tensors}"
    base.mkdir()
    shards = tensors // TENSORS_A_SHARD
    files: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        prefix = f"model.layers.{shard}.mlp.experts"
        names = [f"{prefix}.{expert}.down_proj.weight" for expert in range(TENSORS_A_SHARD)]
        _write_sparse(base / file, names)
        files |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * SIDE * SIDE * len(files)}, "weight_map": files}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (base / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    adapter = folder / "sparse-adapter.safetensors"
    module = next(iter(files)).removesuffix(".weight")
    factors = {
        f"{module}.lora_A": np.ones((2, SIDE), np.float32),
        f"{module}.lora_B": np.ones((SIDE, 2), np.float32),
    }
    save_file(factors, adapter)
    return base, adapter


def _write_sparse(path: Path, names: list[str]) -> None:
    size = 2 * SIDE * SIDE
    header = {
        name: {
            "dtype": "BF16",
            "shape": [SIDE, SIDE],
            "data_offsets": [place * size, (place + 1) * size],
        }
        for place, name in enumerate(names)
    }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + size * len(names))


def measure_plans(folder: Path, *, quick: bool) -> list[Planned]:
    """Measure every size in turn; `folder` holds the bases afterwards."""
    return [
        _measured(*make_sparse(folder, tensors), tensors, repeats=1 if quick else REPEATS)
        for tensors in (QUICK_SIZES if quick else SIZES)
    ]


def _measured(base: Path, adapter: Path, tensors: int, *, repeats: int) -> Planned:
    facts = ["--alpha", "4", "--no-fan-in-fan-out"]
    command = [*lora_export(), "merge", str(base), str(adapter), *facts, "--dry-run"]
    peak = run(command, sampled=True).anonymous
    runs = [run(command) for _ in range(repeats)]
    wall = statistics.median(one.wall for one in runs)
    cpu = statistics.median(one.cpu for one in runs)
    return Planned(
        tensors=tensors, shards=tensors // TENSORS_A_SHARD, wall=wall, cpu=cpu, anonymous=peak
    )


def main() -> None:
    """Print a line for every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="where to write (default: the temp folder)")
    parser.add_argument("--quick", action="store_true", help="a few hundred tensors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-bench-", dir=given.data) as folder:
        found = measure_plans(Path(folder), quick=given.quick)
    for one in found:
        print(
            f"{one['tensors']:7,} tensors in {one['shards']:5,} shards: "
            f"{one['wall']:.2f} s, {one['anonymous'] / 1e6:.0f} MB"
        )
    if given.json:
        content = {"quick": given.quick, "plan": found}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
