"""Models larger than the memory that their proof may take: the peak, and a fault that is small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from make_llama import ALPHA, RANK, SHAPES, Shape, make_adapters, make_base

from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof.model_proof import prove_model
from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.choose import folder_model
from lora_export.models.subject import Subject

MB = 1 << 20
TASK = "text-generation"  # the bases of the benchmarks name no architecture

# Measures RssAnon, which leaves out mapped files, in a thread: the kernel keeps no high-water mark.
CHILD = """
import json, re, sys, threading
from pathlib import Path
import torch, transformers.models.llama.modeling_llama
import lora_export
from lora_export.report.document import report_json

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

start = most = anonymous()
stop = threading.Event()

def look():
    global most
    while not stop.wait(0.005):
        most = max(most, anonymous())

thread = threading.Thread(target=look, daemon=True)
thread.start()
verb, base, adapter, output, settings = sys.argv[1:]
report = getattr(lora_export, verb)(base, [adapter], output, require="model",
                                    task="text-generation", **json.loads(settings))
stop.set()
thread.join()
print(json.dumps({"peak": most - start, "report": report_json(report)["verification"]}))
"""


def made(verb, base, adapter, output, **settings):
    """Run a verb in a process of its own: (peak of anonymous bytes above the start, checks)."""
    command = [sys.executable, "-c", CHILD, verb, *map(str, (base, adapter, output))]
    done = subprocess.run(
        [*command, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert all(level["proven"] for level in answer["report"]["levels"].values())
    return answer["peak"], answer["report"]


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_the_memory_is_below_the_weights(tmp_path):
    """The float32 weights alone take 505 MB, and the proof in memory would take twice as much."""
    shape = Shape(512, 2, 1024, 8, 2, 125_000)
    make_base(shape, tmp_path / "base")
    _, adapter = make_adapters(shape, tmp_path, "all")
    elements = sum(torch.Size(dims).numel() for dims in shape.weights().values())
    peak, _ = made("merge", tmp_path / "base", adapter, tmp_path / "out")
    assert 4 * elements > 500 * MB
    assert peak < 450 * MB, f"{peak / MB:.0f} MB"


@pytest.fixture(scope="module")
def billion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("1b")
    make_base(SHAPES["1b"], folder / "base")
    _, adapter = make_adapters(SHAPES["1b"], folder, "all")
    return folder / "base", adapter


@pytest.mark.slow
def test_a_model_of_a_billion_parameters(billion, tmp_path):
    base, adapter = billion
    size = (adapter / "adapter_model.safetensors").stat().st_size
    peak, _ = made("merge", base, adapter, tmp_path / "out")
    assert peak < size + 600 * MB, f"{peak / MB:.0f} MB"
    subject = planted(base, adapter, tmp_path / "out")
    proven = prove_model(*subject).proven()
    failed = {check.name for check in proven.checks if not check.passed}
    assert "merged before rounding = unmerged (torch)" in failed
    assert proven.attribution.module == "model.layers.13.mlp.up_proj"


def planted(base, adapter, output):
    """Make the update of one of 154 modules half a percent too large, in the stored bfloat16."""
    name = "model.layers.13.mlp.up_proj"
    factors = load_file(adapter / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.{name}.lora_{role}.weight"] for role in "AB")
    where = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    weight = load_file(base / where[f"{name}.weight"])[f"{name}.weight"].float()
    shard = output / where[f"{name}.weight"]
    tensors = load_file(shard)
    wrong = weight + (up @ down) * (1.005 * ALPHA / RANK)
    save_file({**tensors, f"{name}.weight": wrong.bfloat16()}, shard, metadata={"format": "pt"})
    job = make_job(base, [adapter], network=Network(None, TASK), proof=None, settings={})
    return job, Subject(folder_model(job.plan.base, (), TASK), job.plan, read_checkpoint(output))


@pytest.mark.slow
def test_a_graph_of_a_billion_parameters(billion, tmp_path):
    """Its float32 weights take 4.4 GB. --kv-cache is proven by generating as well."""
    base, adapter = billion
    peak, report = made("export_onnx", base, adapter, tmp_path / "x.onnx", kv_cache=True)
    assert peak < 4500 * MB, f"{peak / MB:.0f} MB"
    assert {"model", "file", "runtime"} <= report["levels"].keys()
