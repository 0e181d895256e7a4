"""What `litgpt finetune lora` leaves behind, and what its merge makes of it, without litgpt.

`merged` was held against `litgpt.scripts.merge_lora` of litgpt 0.5.13 and of 0.4.13 (torch 2.14.1):
equal to the bit for every choice of query, key and value, 4, 2 and 1 groups, float32 and bfloat16,
and for weights of 512 columns at rank 16 and 64.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F

HEADS, SIZE, WIDTH, RANK, ALPHA, LAYERS = 4, 8, 32, 4, 10, 2
COMBINATIONS = [one for one in itertools.product((True, False), repeat=3) if any(one)]
PARTS = {
    "projection": {"transformer.h.{}.attn.proj": (WIDTH, HEADS * SIZE)},
    "mlp": {"transformer.h.{}.mlp.fc_1": (48, WIDTH), "transformer.h.{}.mlp.proj": (WIDTH, 48)},
    "head": {"lm_head": (64, WIDTH)},
}


@dataclass(frozen=True)
class Training:
    """One fine-tuning; `by_group` is litgpt up to 0.5.4, whose fused weight is `attn.attn`."""

    enabled: tuple[bool, bool, bool] = (True, False, True)
    groups: int = 2
    by_group: bool = False
    parts: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    base_dtype: torch.dtype | None = None
    width: int = WIDTH
    rank: int = RANK

    @property
    def fused(self) -> str:
        return f"transformer.h.{{}}.attn.{'attn' if self.by_group else 'qkv'}"

    def modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer of the network, with the shape of its weight."""
        shapes = {self.fused: ((HEADS + 2 * self.groups) * self.width // HEADS, self.width)}
        for part in PARTS.values():
            shapes |= part
        return {
            name.format(layer): shape for layer in range(LAYERS) for name, shape in shapes.items()
        }

    def adapted(self, module: str) -> bool:
        """Whether litgpt's switches put factors there."""
        chosen = [name for part in self.parts for name in PARTS[part]]
        chosen += [self.fused] if any(self.enabled) else []
        return any(module == name.format(layer) for name in chosen for layer in range(LAYERS))


def merged(training: Training, weight, a, b):
    """LoRAQKVLinear.merge, of one weight that is in the LoRA's dtype already."""
    heads = (HEADS, training.groups, training.groups)
    size = len(weight) // sum(heads)
    rows = [count * size for count, on in zip(heads, training.enabled, strict=True) if on]
    if training.groups == HEADS:
        parts = F.conv1d(a[None], b[..., None], groups=len(rows))[0].split(rows)
    else:
        pairs = zip(a.chunk(len(rows)), b.split(rows), strict=True)
        parts = [F.conv1d(down[None], up[..., None])[0] for down, up in pairs]
    scaled = [part * (ALPHA / training.rank) for part in parts]
    update = torch.zeros_like(weight)
    if training.by_group and not all(training.enabled):
        per_group = HEADS // training.groups
        view = update.view(training.groups, per_group + 2, size, -1)
        places = (view[:, :per_group], view[:, per_group], view[:, per_group + 1])
    else:
        places = update.split([count * size for count in heads])
    on = [place for place, chosen in zip(places, training.enabled, strict=True) if chosen]
    for place, part in zip(on, scaled, strict=True):
        place.copy_(part.reshape(place.shape))
    return weight + update


def write(folder, training: Training, *, settings: bool = True):
    """(base, LoRA, what litgpt's merge gives): files as litgpt writes and names them."""
    torch.manual_seed(0)
    base = {
        f"{name}.weight": torch.randn(shape) * 0.1 for name, shape in training.modules().items()
    }
    base["transformer.wte.weight"] = torch.randn(64, training.width)
    base = {name: each.to(training.base_dtype or training.dtype) for name, each in base.items()}
    lora = {}
    expected = {name: each.to(training.dtype) for name, each in base.items()}
    for module, (rows, in_) in training.modules().items():
        if not training.adapted(module):
            continue
        is_fused = any(module == training.fused.format(layer) for layer in range(LAYERS))
        blocks, out = sum(training.enabled) if is_fused else 1, rows
        if is_fused:
            heads = (HEADS, training.groups, training.groups)
            counts = zip(heads, training.enabled, strict=True)
            out = rows // sum(heads) * sum(count for count, on in counts if on)
        a = (torch.randn(training.rank * blocks, in_) * 0.3).to(training.dtype)
        b = (torch.randn(out, training.rank) * 0.3).to(training.dtype)
        lora |= {f"{module}.lora_A": a, f"{module}.lora_B": b}
        name = f"{module}.weight"
        if is_fused:
            expected[name] = merged(training, expected[name], a, b)
        else:
            expected[name] = expected[name] + (b @ a) * (ALPHA / training.rank)
    (folder / "final").mkdir()
    torch.save(base, folder / "lit_model.pth")
    torch.save({"model": lora}, folder / "final" / "lit_model.pth.lora")
    if settings:
        write_settings(folder / "final", training)
    return folder / "lit_model.pth", folder / "final" / "lit_model.pth.lora", expected


def write_settings(folder, training: Training, **changes) -> None:
    """hyperparameters.yaml and model_config.yaml, with lines as litgpt 0.5.13 writes them."""
    flags = dict(zip(("query", "key", "value"), training.enabled, strict=True))
    flags |= {part: part in training.parts for part in PARTS}
    hyper = {"checkpoint_dir": "/some/dir", "precision": None, "lora_r": training.rank}
    hyper |= {"lora_alpha": ALPHA, "lora_dropout": 0.05}
    hyper |= {f"lora_{part}": on for part, on in flags.items()}
    model = {"n_embd": training.width, "n_head": HEADS, "n_layer": LAYERS}
    model |= {"n_query_groups": training.groups, "norm_eps": "1.0e-05"}
    data = "data:\n  class_path: litgpt.data.Alpaca\n  init_args:\n    seed: 42\n"
    hyper_text = _yaml({**hyper, **{k: v for k, v in changes.items() if k.startswith("lora_")}})
    (folder / "hyperparameters.yaml").write_text(hyper_text + data + "optimizer: AdamW\n")
    sizes = {**model, **{k: v for k, v in changes.items() if k.startswith("n_")}}
    text = "hf_config:\n  name: x\n  org: y\n" + _yaml(sizes) + "rope_indices:\n- 0\n- 1\n"
    (folder / "model_config.yaml").write_text(text)


def _yaml(members) -> str:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in members.items()}
    return "".join(f"{key}: {text}\n" for key, text in texts.items())
