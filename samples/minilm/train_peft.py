"""Make the folders `lora`, `dora` and `rslora`: the same bytes on every run on one machine."""

import argparse
from functools import partial
from pathlib import Path

import peft
import torch
from data import Texts, published, reviews
from fitting import fit
from peft_forms import FORMS, config, load, scores

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
        fit(adapted, training, options.epochs, partial(scores, adapted), f"{form}: ")
        save(adapted, options.to / form)


def save(adapted: peft.PeftModel, folder: Path) -> None:
    """Save what PEFT saves, with the base's folder alone in the place of this machine's path."""
    base = published("config.json").parent
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form, to be filled in for a hub


if __name__ == "__main__":
    main()
