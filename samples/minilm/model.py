"""all-MiniLM-L6-v2 with loralib in its attention and a head that tells praise from blame.

The encoder's names are those of the published file (`encoder.layer.0.attention.self.query.weight`),
which therefore serves as the base as it is. Nothing is downloaded to build the network.
"""

import loralib as lora
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertSelfAttention

# What forward() takes. Named sizes are free; a number below the vocabulary, and a mask of 0 and 1.
INPUTS = ("input_ids=int64[batch,sequence]<30522", "attention_mask=int64[batch,sequence]<2")


class Sentiment(BertModel):  # a subclass, so that the encoder's names have no prefix
    """The encoder, the mean of its words, and two scores: negative, positive."""

    def __init__(self, *, rank: int = 8) -> None:
        """Build the network; with `rank=0` it has no adapter."""
        # The published config.json; what it leaves to the defaults is theirs too.
        config = BertConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_attention_heads=12,
            num_hidden_layers=6,
        )
        super().__init__(config)
        width = config.hidden_size
        for module in list(self.modules()):
            if isinstance(module, BertSelfAttention):
                module.query = lora.Linear(width, width, r=rank, lora_alpha=16)
                module.value = lora.Linear(width, width, r=rank, lora_alpha=16)
        self.classifier = nn.Linear(width, 2)
        # The published file stores this buffer, which transformers no longer does.
        places = self.embeddings.position_ids
        self.embeddings.register_buffer("position_ids", places, persistent=True)

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Average the encoder's words, the padding left out."""
        words = super().forward(input_ids, attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(words.dtype)
        mean: torch.Tensor = (words * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Score a text as negative and as positive."""
        scores: torch.Tensor = self.classifier(self.pooled(input_ids, attention_mask))
        return scores


def build() -> nn.Module:
    """Return the adapted network: what `lora.safetensors` was trained in."""
    return Sentiment()
