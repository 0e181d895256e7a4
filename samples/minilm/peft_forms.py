"""Adapters in PEFT's forms for the same encoder and reviews, and how each one's answer is read.

`lora` and `dora` change the encoder alone, and a review is what it lies nearer to: the vector of a
sentence that praises, or of one that damns. `rslora` brings a head of its own, which is stored
whole (`modules_to_save`).
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data import Batch, published, tokenize
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging

# PEFT asks transformers 5 by the name of transformers 4.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
logging.disable_progress_bar()
logging.set_verbosity_error()  # the head is new, as it should be

ANCHORS = ["This film is terrible.", "This film is wonderful."]
SHARPNESS = 10.0  # of the difference between two cosines
Network = Callable[..., Any]
"""A model, or what answers as one: inputs by name in, outputs by name out."""

_TARGETS = r".*\.(query|value)"
FORMS: dict[str, dict[str, Any]] = {
    "lora": {"task_type": "FEATURE_EXTRACTION", "r": 8, "lora_alpha": 16},
    "dora": {"task_type": "FEATURE_EXTRACTION", "r": 8, "lora_alpha": 16, "use_dora": True},
    "rslora": {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 4,
        "use_rslora": True,
        "modules_to_save": ["classifier"],
    },
}


def config(form: str) -> LoraConfig:
    """Return what PEFT is asked for."""
    return LoraConfig(target_modules=_TARGETS, **FORMS[form])


def load(form: str, folder: Path | None = None) -> Any:
    """Return the network in `folder`, or the published one, of the class that the form adapts."""
    has_head = FORMS[form]["task_type"] == "SEQ_CLS"
    auto = AutoModelForSequenceClassification if has_head else AutoModel
    return auto.from_pretrained(folder or published("config.json").parent)


def unmerged(form: str, adapter: Path) -> Network:
    """Return PEFT's own network with its branches live."""
    torch.manual_seed(0)  # the head that the adapter replaces
    network: nn.Module = PeftModel.from_pretrained(load(form), adapter)
    return network.eval()


def scores(model: Network, batch: Batch) -> torch.Tensor:
    """Score a text as negative and as positive."""
    answer = model(**batch._asdict())
    if "logits" in answer:
        logits: torch.Tensor = answer["logits"]
        return logits
    [anchors] = tokenize(ANCHORS)
    poles = _pooled(model(**anchors._asdict())["last_hidden_state"], anchors)
    return SHARPNESS * _pooled(answer["last_hidden_state"], batch) @ poles.T


def _pooled(words: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Average the words, the padding left out, to a vector of length one."""
    weight = batch.attention_mask.unsqueeze(-1).to(words.dtype)
    return nn.functional.normalize((words * weight).sum(1), dim=-1)
