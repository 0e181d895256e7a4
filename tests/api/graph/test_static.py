"""Networks that no tracer can leave open are exported for one size, and proven."""

import onnx
import pytest
import torch
import transformers as tr
from peft import LoraConfig, get_peft_model

from lora_export.api import export_onnx, verify
from lora_export.api.job.chosen_network import Network
from lora_export.errors import InputError, UsageError

LOOP = """
import loralib as lora
import torch
from torch import nn
INPUTS = "x=float32[batch,steps,4]"
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = lora.Linear(4, 4, r=2)
    def forward(self, x):
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.tanh(self.cell(state) + x[:, step])
            states.append(state)
        return torch.stack(states, 1)
def build():
    return Net()
"""
BRANCH = LOOP.replace("return torch.stack(states, 1)", "return x if x.sum() > 0 else state")


def network(folder, code):
    (folder / "net.py").write_text(code)
    torch.manual_seed(0)
    torch.save({"cell.weight": torch.randn(4, 4), "cell.bias": torch.randn(4)}, folder / "base.pt")
    torch.save({f"cell.lora_{a}": torch.randn(*s) for a, s in (("A", (2, 4)), ("B", (4, 2)))},
               folder / "lora.pt")  # fmt: skip
    return (folder / "base.pt", [folder / "lora.pt"], folder / "out.onnx"), {
        "model": f"{folder / 'net.py'}:build"
    }


def test_a_loop_over_a_length_is_exported_for_one(tmp_path):
    paths, settings = network(tmp_path, LOOP)
    with pytest.raises((UsageError, InputError)) as caught:
        export_onnx(*paths, **settings)
    assert "--static steps=" in caught.value.problems[0].hint

    report = export_onnx(*paths, **settings, static=["steps=6"])
    assert "ONNX Runtime = unmerged" in {check.name for check in report.checks}
    assert report.facts["probed"] == {"batch": [1, 3]}
    [given] = onnx.load(paths[2]).graph.input
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 6, 4]

    base, adapters, path = paths
    again = verify(path, base=base, adapters=adapters, **settings)
    assert again.passed
    assert any("static steps=6" in warning for warning in again.warnings)


def test_a_branch_on_values_has_no_hint_of_a_size(tmp_path):
    paths, settings = network(tmp_path, BRANCH)
    with pytest.raises(InputError, match="cannot trace") as caught:
        export_onnx(*paths, **settings)
    assert "branches on values" in caught.value.problems[0].hint


def test_steps_with_a_cache_need_open_sizes():
    with pytest.raises(UsageError, match="needs its sizes open"):
        Network(kv_cache=True, static=("sequence=5",)).check(())


TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1}
CLASSES = {
    "Funnel": (
        tr.FunnelForSequenceClassification,
        lambda: tr.FunnelConfig(
            vocab_size=40, block_sizes=[1, 1], num_decoder_layers=1, d_model=16, n_head=2,
            d_head=8, d_inner=24,
        ),
        ["q_head", "v_head"],
    ),
    "Mamba": (
        tr.MambaForCausalLM, lambda: tr.MambaConfig(**TINY, state_size=4), ["in_proj", "x_proj"],
    ),
    "RWKV": (
        tr.RwkvForCausalLM,
        lambda: tr.RwkvConfig(
            **{**TINY, "num_hidden_layers": 2}, attention_hidden_size=16, intermediate_size=24
        ),
        ["key", "value"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_models_of_transformers_are_proven_for_one_length(name, tmp_path):
    kind, config, targets = CLASSES[name]
    torch.manual_seed(0)
    model = kind(config())
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, r=2))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "lora")
    paths = (tmp_path / "base", [tmp_path / "lora"], tmp_path / "out.onnx")
    report = export_onnx(*paths, static=["sequence=16"])
    assert "ONNX Runtime = unmerged" in {check.name for check in report.checks}
