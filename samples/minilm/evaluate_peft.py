"""Show that each adapter's effect survives the merge: accuracy before, with it live, and after."""

import argparse
from pathlib import Path

import torch
from data import TEST_SENTENCES, Batch, reviews, tokenize
from peft_forms import FORMS, load, scores, unmerged
from torch import nn

HERE = Path(__file__).parent


def main() -> None:
    """Score the base, and each form unmerged and merged, on the same unseen sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    for form in FORMS:
        parser.add_argument(f"--{form}", type=Path, help="the folder merged from it")
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size, threads cost more than they bring

    _, testing = reviews()
    batches = tokenize(testing.sentences)
    print(f"{'':17}{'accuracy':>8}   answers unlike unmerged's")
    show("base", accuracy(predict(load("lora"), batches), testing.labels))
    for form in FORMS:
        live = predict(unmerged(form, HERE / form), batches)
        show(f"{form} unmerged", accuracy(live, testing.labels))
        folder = getattr(options, form)
        if folder:
            answers = predict(load(form, folder), batches)
            differ = f"{int((answers != live).sum())} of {TEST_SENTENCES}"
            show(f"{form} merged", accuracy(answers, testing.labels), differ)


def predict(model: nn.Module, batches: list[Batch]) -> torch.Tensor:
    """Judge every test sentence."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([scores(model, batch) for batch in batches]).argmax(1)


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers."""
    return (answers == labels).float().mean().item()


def show(name: str, share: float, differ: str = "") -> None:
    """Print a row of the table."""
    print(f"{name:17}{share:8.1%}   {differ}".rstrip())


if __name__ == "__main__":
    main()
