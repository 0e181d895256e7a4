"""The training that every adapter of this sample goes through, whichever library has made it."""

from collections.abc import Callable

import torch
from data import Batch, Texts, tokenize
from torch import nn


def fit(
    model: nn.Module,
    texts: Texts,
    epochs: int,
    scores: Callable[[Batch], torch.Tensor],
    name: str = "",
) -> None:
    """Minimise the cross-entropy of `scores` over whatever is trainable in the model."""
    batches = tokenize(texts.sentences)
    labels = texts.labels.split(len(batches[0].input_ids))

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        if step % len(batches) == 0:
            shuffled = torch.randperm(len(batches)).tolist()
        which = shuffled[step % len(batches)]
        loss = nn.functional.cross_entropy(scores(batches[which]), labels[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"{name}step {step} of {steps}: loss {loss.item():.3f}", flush=True)
