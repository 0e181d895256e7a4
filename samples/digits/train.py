"""Make `base.safetensors` and `lora.safetensors`: the same bytes on every run on one machine."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import Digits, plain, turned
from model import DigitReader
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def main() -> None:
    """Train the base, freeze it, train the adapter on top of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores

    base = train_base(options.epochs)
    save_file(base.state_dict(), options.to / "base.safetensors")
    adapted = train_adapter(base, options.epochs)
    # Still in train() mode: loralib's eval() would have added the adapter to the weights.
    adapter = lora.lora_state_dict(adapted, bias="lora_only")
    save_file(adapter, options.to / "lora.safetensors")


def train_base(epochs: int) -> DigitReader:
    """Train the plain network, with no adapter in it, on plain digits."""
    model = DigitReader(adapted=False)
    model.train()
    fit(model, plain()[0], epochs)
    return model


def train_adapter(base: DigitReader, epochs: int) -> DigitReader:
    """Train the low-rank factors, and the biases beside them, on turned digits."""
    model = DigitReader()
    keys = model.load_state_dict(base.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(".lora_" in key for key in keys.missing_keys)  # nothing else was skipped
    lora.mark_only_lora_as_trainable(model, bias="lora_only")
    model.train()
    # The batch norms' statistics are the base's: an adapter file has no place for new ones.
    model.bn1.eval()
    model.bn2.eval()
    fit(model, turned()[0], epochs)
    return model


def fit(model: nn.Module, digits: Digits, epochs: int) -> None:
    """Minimise the cross-entropy over whatever is trainable in the model."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=1e-2)
    batch = 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-2, total_steps=epochs * -(-len(digits.labels) // batch)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.labels)).split(batch):
            loss = nn.functional.cross_entropy(model(digits.images[rows]), digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
