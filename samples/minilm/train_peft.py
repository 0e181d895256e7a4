"""Make the folders `lora`, `dora` and `rslora`: the same bytes on every run on one machine."""

import argparse
from pathlib import Path

import peft
import torch
from data import Texts, reviews, tokenize
from peft_forms import FORMS, NAME, config, load, scores
from torch import nn

HERE = Path(__file__).parent


def main() -> None:
    """Train each form of adapter on top of the published encoder, which stays frozen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--sentences", type=int, help="train on so many only")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args()

    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores

    training, _ = reviews()
    some = slice(options.sentences)
    training = Texts(training.sentences[some], training.labels[some])
    for form in FORMS:
        torch.manual_seed(0)
        adapted = peft.get_peft_model(load(form), config(form))
        fit(form, adapted, training, options.epochs)
        save(adapted, options.to / form)


def fit(form: str, model: nn.Module, texts: Texts, epochs: int) -> None:
    """Minimise the cross-entropy over whatever is trainable in the model."""
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
        loss = nn.functional.cross_entropy(scores(model, batches[which]), labels[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"{form}: step {step} of {steps}: loss {loss.item():.3f}", flush=True)


def save(adapted: peft.PeftModel, folder: Path) -> None:
    """Save what PEFT saves, with the base's public name in the place of this machine's path."""
    adapted.peft_config["default"].base_model_name_or_path = NAME
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form, to be filled in for a hub


if __name__ == "__main__":
    main()
