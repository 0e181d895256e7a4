"""Make the base and its two PEFT adapters: the same bytes on every run on one machine."""

import argparse
import json
import warnings
from pathlib import Path

import torch
from data import Digits, plain, turned
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

HERE = Path(__file__).parent

# PEFT 0.21 asks transformers 5.24 for an attribute that has another name there by now.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

# Scalings that are neither 1 nor a power of two, so that a forgotten one shows.
ADAPTERS = {
    "lora": LoraConfig(
        r=4, lora_alpha=10, target_modules="all-linear", exclude_modules=["classifier"]
    ),
    "dora": LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        use_dora=True,
        target_modules=["q_proj", "v_proj", "fc1", "fc2"],
        modules_to_save=["classifier"],
    ),
}


def main() -> None:
    """Train the base on plain digits, and each adapter on turned ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args()

    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores

    base = options.to / "base"
    torch.manual_seed(0)
    model = ViTForImageClassification(configuration())
    fit(model, plain()[0], options.epochs)
    model.save_pretrained(base)
    for name, config in ADAPTERS.items():
        torch.manual_seed(0)
        frozen = ViTForImageClassification.from_pretrained(base)
        adapted = get_peft_model(frozen, config)
        fit(adapted, turned()[0], options.epochs)
        # The file names the base it belongs to; a path of this machine would mean nothing.
        adapted.peft_config["default"].base_model_name_or_path = "base"
        adapted.save_pretrained(options.to / name, save_embedding_layers=False)
        (options.to / name / "README.md").unlink()  # a card about nothing, with today's versions
        put_in_order(options.to / name / "adapter_config.json")


def put_in_order(path: Path) -> None:
    """Sort the lists that PEFT keeps as sets, whose order is another on every run."""
    config = json.loads(path.read_text("utf-8"))
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        config[key] = config[key] and sorted(config[key])
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def configuration() -> ViTConfig:
    """Return a vision transformer small enough to be trained in a minute."""
    return ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def fit(model: nn.Module, digits: Digits, epochs: int) -> None:
    """Minimise the cross-entropy over whatever is trainable in the model."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=1e-2)
    batch = 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=epochs * -(-len(digits.labels) // batch)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.labels)).split(batch):
            scores = model(pixel_values=digits.pixels[rows]).logits
            loss = nn.functional.cross_entropy(scores, digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
