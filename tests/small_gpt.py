"""A small model with every way a merge can go wrong: square weights, fused QKV, a plain Linear."""

import loralib as lora
import torch
from torch import nn

INPUTS = ("ids=int64[batch,sequence]<31",)
BLOCKS = [True, False, True]
WIDTH = 24


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = lora.MergedLinear(
            WIDTH, 3 * WIDTH, r=4, lora_alpha=6, enable_lora=BLOCKS, fan_in_fan_out=True
        )
        self.c_proj = lora.Linear(WIDTH, WIDTH, r=4, lora_alpha=6, fan_in_fan_out=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        one_head = self.c_attn(self.norm(x)).unsqueeze(1)
        q, k, v = one_head.chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.c_proj(mixed.squeeze(1))


class SmallGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(31, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = lora.Linear(WIDTH, 5, r=4, lora_alpha=6)

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def build():
    return SmallGPT()


def trained(seed=0):
    """The model with random factors, unmerged."""
    torch.manual_seed(seed)
    model = build().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model
