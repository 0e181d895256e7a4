"""A module of stacked experts, wrapped by PEFT's own target_parameters, and its files."""

import json

import torch
from safetensors.torch import save_file
from torch import nn


class Experts(nn.Module):
    """Every expert's update is seen by every input; stored (E, out, in), or (E, in, out)."""

    def __init__(self, experts, hidden, inner, *, transposed=False):
        super().__init__()
        self.is_transposed = transposed
        shapes = [(experts, 2 * inner, hidden), (experts, hidden, inner)]
        up, down = (s[:1] + s[:0:-1] if transposed else s for s in shapes)
        self.gate_up_proj = nn.Parameter(torch.randn(up) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(down) * 0.2)

    def forward(self, x):
        up, down = self.gate_up_proj, self.down_proj
        up, down = (up, down) if self.is_transposed else (up.mT, down.mT)
        gate, inner = (x.expand(len(up), *x.shape) @ up).chunk(2, dim=-1)
        return ((gate.sigmoid() * inner) @ down).sum(0)


class Block(nn.Module):
    """Experts behind a router, which is one matrix, and a plain layer."""

    def __init__(self, experts=4, hidden=16, inner=12, *, transposed=False):
        super().__init__()
        self.proj = nn.Linear(hidden, hidden)
        self.router = nn.Linear(hidden, experts, bias=False)
        self.experts = Experts(experts, hidden, inner, transposed=transposed)

    def forward(self, x):
        x = self.proj(x)
        return self.experts(x) * self.router(x).sigmoid().sum(-1, keepdim=True)


def block(*, seed=0, dtype=torch.float32, **sizes):
    torch.manual_seed(seed)
    return Block(**sizes).to(dtype)


def adapted(model, *, rank=2, **config):
    """The model with random factors on its experts."""
    from peft import LoraConfig, get_peft_model

    config = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], **config}
    config = {"target_modules": [], "r": rank, "lora_alpha": 3, **config}
    live = get_peft_model(model, LoraConfig(**config))
    for name, parameter in live.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return live


def save(live, folder, **config):
    """The adapter as PEFT saves it, with `config` in place of what it says."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(exist_ok=True)
    tensors = {k: v.contiguous() for k, v in get_peft_model_state_dict(live).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    live.peft_config["default"].save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder
