"""A small GPT-2 over characters, with loralib's MergedLinear in its attention.

Names and storage are GPT-2's: `transformer.h.0.attn.c_attn.weight` is (in, out), query, key and
value sit side by side in it, and the head is tied to the embedding.
"""

import loralib as lora
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT, WIDTH, HEADS, LAYERS = 256, 64, 4, 4

# What forward() takes: a number below 96 for each character, any sequence up to CONTEXT.
INPUTS = (f"input_ids=int64[batch,sequence]<{len(ALPHABET)}",)


def dense(fan_in: int, fan_out: int) -> nn.Module:
    """Return GPT-2's Conv1D: a linear layer whose weight is stored (in, out)."""
    layer: nn.Module = lora.Linear(fan_in, fan_out, fan_in_fan_out=True)
    return layer


class Attention(nn.Module):
    """Causal self-attention; query and value are adapted, the key in between is not."""

    def __init__(self, rank: int) -> None:
        """Build the projections."""
        super().__init__()
        self.c_attn = lora.MergedLinear(
            WIDTH,
            3 * WIDTH,
            r=rank,
            lora_alpha=32,
            enable_lora=[True, False, True],
            fan_in_fan_out=True,
        )
        self.c_proj = dense(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Let every character look at itself and at those before it."""
        query, key, value = (
            part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for part in self.c_attn(hidden).chunk(3, dim=-1)
        )
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: torch.Tensor = self.c_proj(seen.transpose(1, 2).flatten(2))
        return projected


class Perceptron(nn.Module):
    """Four times wider inside, and nothing of it adapted."""

    def __init__(self) -> None:
        """Build the two layers."""
        super().__init__()
        self.c_fc = dense(WIDTH, 4 * WIDTH)
        self.c_proj = dense(4 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply them to every place on its own."""
        projected: torch.Tensor = self.c_proj(gelu(self.c_fc(hidden), approximate="tanh"))
        return projected


class Block(nn.Module):
    """One layer: attention, then a perceptron, each added to what came in."""

    def __init__(self, rank: int) -> None:
        """Build the two halves and the norm before each."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = Attention(rank)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = Perceptron()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply both halves."""
        attended: torch.Tensor = hidden + self.attn(self.ln_1(hidden))
        thought: torch.Tensor = attended + self.mlp(self.ln_2(attended))
        return thought


class Transformer(nn.Module):
    """Embeddings, layers, and a last norm."""

    def __init__(self, rank: int) -> None:
        """Build them in GPT-2's order."""
        super().__init__()
        self.wte = nn.Embedding(len(ALPHABET), WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.Sequential(*(Block(rank) for _ in range(LAYERS)))
        self.ln_f = nn.LayerNorm(WIDTH)
        # GPT-2's start: from the default one, the tied head's first scores are far too large.
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Describe every place of every sequence."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        described: torch.Tensor = self.ln_f(self.h(self.wte(input_ids) + self.wpe(places)))
        return described


class CharGPT(nn.Module):
    """GPT-2, three orders of magnitude smaller."""

    def __init__(self, *, rank: int = 4) -> None:
        """Build the network; with `rank=0` it is the plain base."""
        super().__init__()
        self.transformer = Transformer(rank)
        self.lm_head = nn.Linear(WIDTH, len(ALPHABET), bias=False)
        # One tensor under two names; a safetensors file holds it once, as transformer.wte.weight.
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Score the next character, at every place of every sequence."""
        scores: torch.Tensor = self.lm_head(self.transformer(input_ids))
        return scores


def build() -> nn.Module:
    """Return the adapted network: what `lora.pt` was trained in."""
    return CharGPT()
