"""Layers of PEFT on small base layers, and what PEFT itself makes of them: the oracle."""

import warnings
from dataclasses import dataclass

import torch
from torch import nn


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)


class Attention(nn.Module):
    """A model of one attention, and a layer after it."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


def conv1d(features, inputs):
    """Return transformers' linear layer, whose weight is stored (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D(features, inputs)


LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "linear square": lambda: nn.Linear(32, 32),
    "linear no bias": lambda: nn.Linear(33, 65, bias=False),
    "linear large": lambda: nn.Linear(257, 400),
    "Conv1D": lambda: conv1d(40, 24),
    "Conv1D square": lambda: conv1d(32, 32),
    "Conv1D large": lambda: conv1d(300, 257),
    "embedding": lambda: nn.Embedding(50, 16),
    "embedding square": lambda: nn.Embedding(32, 32),
    "embedding large": lambda: nn.Embedding(700, 96),
    "conv1d": lambda: nn.Conv1d(6, 10, 3),
    "conv1d pointwise": lambda: nn.Conv1d(8, 10, 1),
    "conv2d": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "conv2d pointwise": lambda: nn.Conv2d(8, 10, 1),
    "conv2d oblong": lambda: nn.Conv2d(5, 7, (3, 2), stride=2),
    "conv2d large": lambda: nn.Conv2d(64, 96, 3),
    "conv3d": lambda: nn.Conv3d(3, 4, 2),
    "conv3d flat": lambda: nn.Conv3d(3, 4, 1),
}
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def inputs(layer):
    """What the layer takes, two samples of it."""
    weight = layer.weight
    if isinstance(layer, nn.Embedding):
        return torch.arange(12).view(2, 6) % weight.shape[0]
    if weight.dim() == 2:
        features = weight.shape[0] if type(layer).__name__ == "Conv1D" else weight.shape[1]
        return torch.randn(2, 3, features)
    return torch.randn(2, weight.shape[1], *[6] * (weight.dim() - 2))


def write_factory(folder, name):
    """A file that builds the base model, for --model."""
    if name == "attention":
        spec = "x=float32[batch,tokens,32]"
    else:
        layer = build(name).layer
        sizes = inputs(layer).shape[1:]
        dims = ",".join(map(str, sizes))
        is_table = isinstance(layer, nn.Embedding)
        high = f"<{layer.weight.shape[0]}" if is_table else ""
        spec = f"inputs={'int64' if is_table else 'float32'}[batch,{dims}]{high}"
    text = f"from peft_layers import build\nINPUTS = ({spec!r},)\nmake = lambda: build({name!r})\n"
    path = folder / "factory.py"
    path.write_text(text)
    return f"{path}:make"


@dataclass
class Trained:
    """An adapted model as PEFT has it."""

    model: nn.Module
    base: dict

    def save(self, folder):
        """As PEFT writes it; of a bias of lora_B it warns that it has one size only."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save_pretrained(folder)

    def merged(self, *, safe):
        """The state dict that PEFT's own merge leaves; the model is used up."""
        return self.model.merge_and_unload(safe_merge=safe).state_dict()


def build(name):
    """The base model of a layer, the same at every call."""
    torch.manual_seed(0)
    if name == "attention":
        return Attention(32)
    return Holder(LAYERS[name]())


def train(name, dtype="F32", **settings):
    """PEFT's model of the layer, with factors and magnitudes that are not as they start."""
    from peft import LoraConfig, get_peft_model

    model = build(name).to(DTYPES[dtype])
    base = {key: value.clone() for key, value in model.state_dict().items()}
    target = "attn" if name == "attention" else "layer"
    settings = {"r": 4, "lora_alpha": 6, **settings}
    model = get_peft_model(model, LoraConfig(target_modules=[target], **settings))
    disturb(model)
    return Trained(model.eval(), base)


def disturb(model):
    """Give factors and magnitudes values that are not those of their start."""
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if "magnitude" in key:
                parameter.mul_(1 + 0.05 * noise)
            elif "lora_" in key:
                parameter.copy_(0.1 * noise)
