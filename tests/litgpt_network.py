"""A network with litgpt's names, as a user's own: attention with grouped queries, old and new."""

from litgpt_files import HEADS, LAYERS, SIZE, WIDTH
from torch import nn
from torch.nn import functional as F

GROUPS = 2
INPUTS = ("ids=int64[batch,sequence]<64",)


class Attention(nn.Module):
    """`name` is that of the fused layer: `qkv`, or `attn`, whose rows lie group by group."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * SIZE, bias=False))
        self.proj = nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    def parts(self, x):
        fused = getattr(self, self.name)(x)
        if self.name == "qkv":
            return fused.split([count * SIZE for count in (HEADS, GROUPS, GROUPS)], dim=-1)
        by_group = fused.view(*x.shape[:2], GROUPS, HEADS // GROUPS + 2, SIZE)
        return by_group.split([HEADS // GROUPS, 1, 1], dim=-2)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (part.reshape(batch, length, -1, SIZE).transpose(1, 2) for part in self.parts(x))
        k, v = (each.repeat_interleave(HEADS // GROUPS, dim=1) for each in (k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(seen.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_1 = nn.Linear(WIDTH, 48, bias=False)
        self.proj = nn.Linear(48, WIDTH, bias=False)

    def forward(self, x):
        return self.proj(F.silu(self.fc_1(x)))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.attn = Attention(fused)
        self.mlp = Mlp()

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class Network(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.lm_head = nn.Linear(WIDTH, 64, bias=False)
        blocks = nn.ModuleList(Block(fused) for _ in range(LAYERS))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(64, WIDTH), "h": blocks})

    def forward(self, ids):
        x = self.transformer["wte"](ids)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(x)


def build():
    return Network("qkv")


def build_old():
    return Network("attn")
