"""What a default run leaves to the slow one is drawn by a seed, and drawn again by the same one."""

from __future__ import annotations

import pytest
from peft_matrix.cases import CASES

from whole_run.sampling import VARIABLE, is_drawn, sampled_proofs, set_seed

NAMES = [f"case {number}" for number in range(300)]


def drawn():
    return [name for name in NAMES if is_drawn(name)]


def test_a_third_is_drawn_anew_for_every_run_and_the_same_for_one_seed(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    seeds = {set_seed(None)}
    monkeypatch.setenv(VARIABLE, "")
    assert seeds != {set_seed(None)} or seeds != {set_seed(None)}
    found = {}
    for seed in ("7", "8"):
        assert set_seed(seed) == seed
        found[seed] = drawn()
        assert 60 < len(found[seed]) < 140
    assert found["7"] != found["8"]
    monkeypatch.setenv(VARIABLE, "7")
    assert set_seed(None) == "7"
    assert drawn() == found["7"]


def test_a_case_that_is_sampled_by_default_is_proven_by_the_slow_run():
    slow = {param.id for param in CASES if param.marks}
    default = {param.id for param in CASES if not param.marks}
    assert len(default) == 210
    assert {f"{name}-proven" for name in default} <= slow


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@sampled_proofs
@pytest.mark.parametrize("number", range(3))
def test_without_a_proof_as_a_model_weights_are_proven_all_the_same(
    number, is_proven, request, tmp_path
):
    import torch
    from peft_matrix.architectures import ARCHITECTURES
    from peft_matrix.making import make_adapter
    from peft_matrix.options import OPTIONS

    from lora_export.api import merge

    ARCHITECTURES["llama"].save(torch.float32, tmp_path / "base")
    make_adapter(ARCHITECTURES["llama"], OPTIONS["plain"], tmp_path / "base", tmp_path / "lora")
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    levels = {check.level for check in report.checks}
    assert levels == ({"weights", "model"} if is_proven else {"weights"})
    assert is_proven or request.node.get_closest_marker("slow") is None
