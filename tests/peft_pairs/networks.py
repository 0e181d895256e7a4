"""Tiny networks that PEFT adapts, whose names are those of the base file."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Block(nn.Module):
    """Layers of the sorts that tuners take; `linear` makes them nn.Linear, else Conv1D."""

    def __init__(self, *, linear):
        super().__init__()
        self.qkv = nn.Linear(6, 10) if linear else Conv1D(10, 6)
        self.out = nn.Linear(6, 6, bias=False) if linear else nn.Linear(5, 6, bias=False)
        self.up = nn.Linear(6, 8) if linear else Conv1D(8, 6)
        self.norm = nn.LayerNorm(6)


class Body(nn.Module):
    """A table, two blocks and a norm."""

    def __init__(self, *, linear):
        super().__init__()
        self.emb = nn.Embedding(9, 6)
        self.layers = nn.ModuleList([Block(linear=linear), Block(linear=linear)])
        self.norm = nn.LayerNorm(6)


class Network(nn.Module):
    """A body as transformers calls it, two convolutions, and a head."""

    def __init__(self, *, linear=True):
        super().__init__()
        self.model = Body(linear=linear)
        self.conv = nn.Conv2d(2, 3, 2)
        self.point = nn.Conv1d(3, 4, 1)
        self.head = nn.Linear(6, 3)


def network(dtype="F32", *, linear=True):
    """The same weights at every call."""
    torch.manual_seed(0)
    return Network(linear=linear).to(DTYPES[dtype])
