"""An adapter of another model: one problem that says so, and not one a module."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import FitError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def case(tmp_path):
    (tmp_path / "base").mkdir()
    weights = {f"m.layers.{n}.q.weight": torch.ones(6, 4) for n in range(9)}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def problems(case, modules):
    (case / "lora").mkdir()
    low = {f"{module}.lora_A.weight": torch.ones(2, 4) for module in modules}
    low |= {f"{module}.lora_B.weight": torch.ones(6, 2) for module in modules}
    save_file(low, case / "lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/other",
    }  # fmt: skip
    (case / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FitError) as caught:
        merge(case / "base", [case / "lora"], case / "out")
    return caught.value.problems


def test_no_module_fits(case):
    [problem] = problems(case, [f"x.block{n}.key" for n in range(14)])
    text = str(problem)
    assert "0 of 14 modules are in this base" in text
    assert "x.block0.key, x.block1.key, x.block10.key and 11 more" in text
    assert "m.layers.0.q.weight" in problem.hint
    assert "LlamaForCausalLM (model_type llama)" in problem.hint
    assert "org/other" in problem.hint
    assert not any(word in text for word in ("--allow-unmatched", ".conv.weight", ".w,"))


def test_some_modules_fit(case):
    fitting = ["m.layers.0.q", "m.layers.1.q"]
    found = problems(case, [*fitting, *(f"m.layers.{n}.key" for n in range(9))])
    *five, rest = found
    assert len(five) == 5
    assert all("the base has no m.layers." in str(problem) for problem in five)
    assert "4 more of the 11 modules are not in this base" in rest.message
    assert "--allow-unmatched" in rest.hint
    assert "org/other" in rest.hint
    assert not any(".conv.weight" in str(problem) for problem in found)


def test_without_transformers_its_names_may_be_lacking(case, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name)
    )
    [problem] = problems(case, ["m.layers.0.q", *(f"m.layers.{n}.key" for n in range(9))])
    assert "9 of 10 modules are not in this base" in problem.message
    assert problem.hint.startswith("pip install 'lora-export[hf]'")
    assert "org/other" in problem.hint
