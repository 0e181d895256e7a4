"""Anonymous memory of an export does not grow with the weights, measured on a model above it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MOST = 150 << 20
"""Bytes that filling, rounding, auditing and running may take; the float32 weights take 400 MB."""

# Measures RssAnon, which leaves out mapped files, in a thread: the kernel keeps no high-water mark.
CHILD = """
import json, re, sys, threading, time
from pathlib import Path
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from lora_export.api import export_onnx
from lora_export.checkpoint.index import read_checkpoint
from lora_export.onnx_export import export
from lora_export.onnx_export.file import save
from lora_export.onnx_export.file.audit import audit
from lora_export.onnx_export.file.linked import save_linked
from lora_export.onnx_export.precision.grids import find_precision
from lora_export.onnx_export.precision.round_graph import lower
from lora_export.onnx_export.precision.rounded_audit import FloatGraph, audit_lowered
from lora_export.verification.runtime import sessions

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

def peak(work):
    start = most = anonymous()
    stop = threading.Event()
    def look():
        nonlocal most
        while not stop.wait(0.002):
            most = max(most, anonymous())
    thread = threading.Thread(target=look)
    thread.start()
    result = work()
    stop.set()
    thread.join()
    return most - start, result

folder, size, dtype = Path(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
sessions.MAPPED_FROM = 0
config = LlamaConfig(vocab_size=size, hidden_size=512, intermediate_size=512, num_hidden_layers=1,
                     num_attention_heads=8, num_key_value_heads=2,
                     architectures=["LlamaForCausalLM"])
torch.manual_seed(0)
LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "base")

from lora_export.models.choose import folder_model
from lora_export.models.subject import Subject
from lora_export.onnx_export.settings import ExportSettings
from types import SimpleNamespace

merged = read_checkpoint(folder / "base")
plan = SimpleNamespace(reshaped=False, base=merged, separated=(), steps=lambda: [])
subject = Subject(folder_model(merged, ()), plan, merged)
made = export.export(subject, None, ExportSettings())
path, small, linked = folder / "x.onnx", folder / "s.onnx", folder / "base" / "l.onnx"
ids = np.arange(12).reshape(2, 6)
probes = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
found, passed = {}, []

def measured(name, work):
    found[name], result = peak(work)
    return result

def rounded():
    graph = type(made.graph)()
    graph.CopyFrom(made.graph)
    kept, parts = lower(graph, precision, made.weights())
    return save.save_model(graph, small, kept, made=parts, external_threshold=1)

precision = find_precision("int4")
measured("fill", lambda: save.save_model(made.graph, path, made.weights(), external_threshold=1))
passed += measured("audit", lambda: audit(
    path, expected=made.weights, base=made.topology, inputs=made.inputs))
measured("run", lambda: sessions.run_model(path, probes, threads=1))
measured("round", rounded)
full = FloatGraph(made.graph, made.weights())
passed += measured("rounded audit", lambda: audit_lowered(
    small, full=full, precision=precision, inputs=made.inputs))[0]
measured("link", lambda: save_linked(made.graph, linked, made.weights(), merged.tensors()))
print(json.dumps({"found": found, "passed": all(check.passed for check in passed),
                  "written": sum(one.stat().st_size for one in folder.glob("x*"))}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_each_stage_takes_less_than_the_weights(tmp_path, dtype):
    vocabulary = 100_000
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(vocabulary), dtype],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["passed"]
    assert answer["written"] > 4 * 2 * 512 * vocabulary > 2 * MOST
    assert max(answer["found"].values()) < MOST, answer["found"]
