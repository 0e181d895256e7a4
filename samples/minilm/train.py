"""Make `lora.safetensors`: the same bytes on every run on one machine."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import Texts, published, reviews
from fitting import fit
from model import Sentiment
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent


def main() -> None:
    """Train the adapter and the head on top of the published encoder, which stays frozen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sentences", type=int, help="train on so many only")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores

    training, _ = reviews()
    some = slice(options.sentences)
    training = Texts(training.sentences[some], training.labels[some])
    save_file(train_adapter(training, options.epochs), options.to / "lora.safetensors")


def train_adapter(texts: Texts, epochs: int) -> dict[str, torch.Tensor]:
    """Return the low-rank factors, and the head: new to the base, it is stored whole."""
    model = Sentiment()
    keys = model.load_state_dict(load_file(published("model.safetensors")), strict=False)
    assert not keys.unexpected_keys
    assert all(".lora_" in key or "classifier." in key for key in keys.missing_keys)
    lora.mark_only_lora_as_trainable(model)
    model.classifier.requires_grad_(requires_grad=True)
    fit(model, texts, epochs, lambda batch: model(*batch))
    # Still in train() mode: loralib's eval() would have added the adapter to the weights.
    head = {f"classifier.{name}": tensor for name, tensor in model.classifier.state_dict().items()}
    adapter: dict[str, torch.Tensor] = lora.lora_state_dict(model) | head
    return adapter


if __name__ == "__main__":
    main()
