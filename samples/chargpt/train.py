"""Make `base.safetensors` and `lora.pt`: the same bytes on every run on one machine."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import WINDOW, encode, english, python
from model import CharGPT
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def main() -> None:
    """Train the base, freeze it, train the adapter on top of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores

    base = train_base(options.steps)
    save_file(base, options.to / "base.safetensors")
    adapter = train_adapter(base, options.steps // 2)
    # As a training loop's checkpoint: a pickle, the tensors one level down.
    torch.save({"model_state_dict": adapter}, options.to / "lora.pt")


def train_base(steps: int) -> dict[str, torch.Tensor]:
    """Teach the plain network English."""
    model = CharGPT(rank=0)
    fit(model.train(), encode(english()), steps, peak=6e-3)
    state = model.state_dict()
    del state["lm_head.weight"]  # the same tensor as transformer.wte.weight
    # loralib keeps (in, out) weights as transposed views, which safetensors does not store.
    return {name: tensor.contiguous() for name, tensor in state.items()}


def train_adapter(base: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """Teach the frozen network Python, by way of the low-rank factors alone."""
    model = CharGPT()
    keys = model.load_state_dict(base, strict=False)
    assert not keys.unexpected_keys
    assert all(".lora_" in key or key == "lm_head.weight" for key in keys.missing_keys)
    lora.mark_only_lora_as_trainable(model)
    fit(model.train(), encode(python()), steps, peak=1e-2)
    # Still in train() mode: loralib's eval() would have added the adapter to the weights.
    adapter: dict[str, torch.Tensor] = lora.lora_state_dict(model)
    return adapter


def fit(model: nn.Module, text: torch.Tensor, steps: int, peak: float) -> None:
    """Minimise the cross-entropy of the next character over whatever is trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
    window = torch.arange(WINDOW)
    for step in range(steps):
        at = torch.randint(len(text) - WINDOW, (32, 1)) + window
        scores = model(text[at])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), text[at + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
