"""The network that `rslora` was trained in, for `--model`: config.json names one without a head.

It is transformers' BertForSequenceClassification, but for its names: the encoder's have no prefix
here, as in the published file, which therefore serves as the base as it is.
"""

import torch
from torch import nn
from transformers import BertConfig, BertModel

# What forward() takes. Named sizes are free; a number below the vocabulary, and a mask of 0 and 1.
INPUTS = ("input_ids=int64[batch,sequence]<30522", "attention_mask=int64[batch,sequence]<2")


class Classifier(BertModel):  # a subclass, so that the encoder's names have no prefix
    """The encoder, its pooled first word, and two scores: negative, positive."""

    def __init__(self, config: BertConfig) -> None:
        """Build the network without adapter; the base's weights and the head are put into it."""
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, 2)
        # The published file stores this buffer, which transformers no longer does.
        places = self.embeddings.position_ids
        self.embeddings.register_buffer("position_ids", places, persistent=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Score a text as negative and as positive."""
        pooled = super().forward(input_ids, attention_mask).pooler_output
        scores: torch.Tensor = self.classifier(pooled)
        return scores


def build() -> nn.Module:
    """Return the network, as the published config.json sizes it."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
    return Classifier(BertConfig(**sizes, num_hidden_layers=6))
