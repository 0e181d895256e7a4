"""Show that an adapter's effect survives the merge: accuracy before, with it live, and after."""

import argparse
from pathlib import Path

import torch
from data import plain, turned
from peft import PeftModel
from torch import nn
from transformers import ViTForImageClassification

HERE = Path(__file__).parent
TASKS = (plain()[1], turned()[1])  # unseen digits of both kinds


def main() -> None:
    """Score every form of the model on the same unseen digits, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="folder of the adapter")
    parser.add_argument("merged", type=Path, help="folder that lora-export wrote")
    options = parser.parse_args()

    answers = {
        "base": predict(load(HERE / "base")),
        "unmerged": predict(PeftModel.from_pretrained(load(HERE / "base"), options.adapter)),
        "merged": predict(load(options.merged)),
    }
    show(answers)


def load(folder: Path) -> nn.Module:
    """Return the network that lies in a folder, as transformers reads it."""
    model: nn.Module = ViTForImageClassification.from_pretrained(folder)
    return model


def predict(model: nn.Module) -> list[torch.Tensor]:
    """Read the test digits of each task."""
    model.eval()
    with torch.inference_mode():
        return [model(pixel_values=task.pixels).logits.argmax(1) for task in TASKS]


def show(answers: dict[str, list[torch.Tensor]]) -> None:
    """Print accuracy on both tasks, and how many answers differ from the live adapter's."""
    print(f"{'':10}{'plain':>7}{'turned':>8}   answers unlike unmerged's")
    truth = torch.cat([task.labels for task in TASKS])
    live = torch.cat(answers["unmerged"])
    for name, given in answers.items():
        scores = [
            (answer == task.labels).float().mean().item()
            for answer, task in zip(given, TASKS, strict=True)
        ]
        differ = int((torch.cat(given) != live).sum())
        print(f"{name:10}{scores[0]:7.1%}{scores[1]:8.1%}   {differ} of {len(truth)}")


if __name__ == "__main__":
    main()
