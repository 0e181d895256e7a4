"""Float32 graphs that run on stored weights: the same outputs as the float32 file, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from lora_export.checkpoint.index import read_checkpoint
from lora_export.onnx_export.file.audit import check_readable
from lora_export.onnx_export.file.linked import save_linked
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.stored_weights import graph_dtypes, weights_of
from lora_export.verification.runtime import sessions
from lora_export.verification.runtime.sessions import run_model


class Held:
    """A model whose state dict is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def linked(case, state, stored, folder):
    """Write a graph on these stored tensors; return (its file, the weights)."""
    unique = {name: one.clone() for name, one in stored.items()}
    save_file(unique, folder / "merged.safetensors")
    weights = weights_of(Held(state), graph_dtypes(case.graph()))
    path = folder / "linked.onnx"
    save_linked(
        case.graph(), path, weights, read_checkpoint(folder / "merged.safetensors").tensors()
    )
    return path, weights


def stored_state(case, dtype):
    state = {name: torch.from_numpy(one) for name, one in case.weights().items()}
    return {n: one.to(dtype) if one.is_floating_point() else one for n, one in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["net", "gpt", "bert", "llama"])
def test_outputs_are_those_of_the_float32_file(zoo, tmp_path, name, dtype, monkeypatch):
    # A kernel on its own copy of a weight sums in another order.
    monkeypatch.setattr(sessions, "MAPPED_FROM", 0)
    case = zoo.captured(name)
    state = stored_state(case, dtype)
    path, weights = linked(case, state, state, tmp_path)
    assert all(check.passed for check in check_readable(path))
    assert not (tmp_path / "linked.onnx.data").exists()
    save_model(case.graph(), tmp_path / "full.onnx", weights)
    probes = case.probes()
    runs = (run_model(one, probes, level="none") for one in (tmp_path / "full.onnx", path))
    for wanted, found in zip(*runs, strict=True):
        assert {n: one.tobytes() for n, one in wanted.items()} == {
            n: one.tobytes() for n, one in found.items()
        }


def test_a_weight_that_is_stored_otherwise_is_copied(zoo, tmp_path):
    """One tensor is missing, one has a stale value, and one lies under its name with a prefix."""
    case = zoo.captured("net")
    state = stored_state(case, torch.bfloat16)
    stored = dict(state)
    del stored["hidden.weight"]
    stored["last.weight"] = state["twin.weight"]
    stored["model.twin.weight"] = stored.pop("twin.weight")
    path, weights = linked(case, state, stored, tmp_path)
    copied = {n: state[n].nbytes for n in ("hidden.weight", "last.weight")}
    assert (tmp_path / "linked.onnx.data").stat().st_size == sum(copied.values())
    save_model(case.graph(), tmp_path / "full.onnx", weights)
    [probe, *_] = case.probes()
    [wanted], [found] = (run_model(p, [probe]) for p in (tmp_path / "full.onnx", path))
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_a_weight_is_cast_in_front_of_its_first_user(zoo, tmp_path):
    """In front of all nodes, the casts would make a float32 copy of the whole model."""
    case = zoo.captured("llama")
    state = stored_state(case, torch.bfloat16)
    path, _ = linked(case, state, state, tmp_path)
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    casts = [place for place, kind in enumerate(kinds) if kind == "Cast"]
    products = [place for place, kind in enumerate(kinds) if kind == "MatMul"]
    gaps = [min(abs(place - cast) for cast in casts) for place in products]
    assert len(casts) >= len(gaps) > 10
    assert sorted(gaps)[len(gaps) // 2] <= 2
