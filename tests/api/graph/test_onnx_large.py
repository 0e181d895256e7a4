"""A model beyond protobuf's limit, exported and verified, and the memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

START = 300 << 20
"""Bytes that Python, torch and transformers take at least."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize("mode", ["onnx --no-verify", "onnx"])
def test_the_memory_of_a_large_model_is_bounded(root, tmp_path, mode):
    """Random weights; see the benchmark for the bounds, which any size must keep."""
    done = subprocess.run(
        [sys.executable, root / "benchmarks/onnx_memory.py", "--size", "0.6b",
         "--mode", mode, "--folder", tmp_path, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [run] = json.loads(done.stdout)["runs"]
    assert run["weights"] > 2.4e9
    assert run["written"] > run["weights"]
    assert run["files"] == 3  # the graph, its external data, the manifest
    assert not run["stopped"]
    assert run["anonymous"] > START  # a run that was looked at too late would seem to take nothing
    assert run["kept"], run
