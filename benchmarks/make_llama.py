"""Write a Llama-shaped base and its adapters, from a seed, as Hugging Face and loralib save them.

The values are random but have the spread of trained weights: a merge copies, multiplies and rounds
them as it would real ones. The folder is one that `LlamaForCausalLM.from_pretrained` loads. Only a
block of one tensor is in memory at any time, so that a base larger than memory can be made.
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    import numpy.typing as npt

    Matrix = npt.NDArray[np.float32]

SEED = 20
RANK = 16
ALPHA = 32
SHARDS = 5
BLOCK = 1 << 22  # elements that are drawn at once
SPREAD = 0.02  # standard deviation of a weight, as Llama is initialised
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "all+head": (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head",
    ),
}  # fmt: skip
"""Which modules an adapter names. The head is in none of the usual choices; it is the one module of
`SHAPES["wide"]` that is large."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama; all heads of one size, the output head not tied to the input table."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its name, in the order of the model."""
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{k}.weight": v for k, v in self._layer().items()}
        found["model.norm.weight"] = (self.hidden,)
        found["lm_head.weight"] = (self.vocabulary, self.hidden)
        return found

    def _layer(self) -> dict[str, tuple[int, ...]]:
        inner, keys = self.hidden, self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (inner, inner),
            "self_attn.k_proj": (keys, inner),
            "self_attn.v_proj": (keys, inner),
            "self_attn.o_proj": (inner, inner),
            "mlp.gate_proj": (self.intermediate, inner),
            "mlp.up_proj": (self.intermediate, inner),
            "mlp.down_proj": (inner, self.intermediate),
            "input_layernorm": (inner,),
            "post_attention_layernorm": (inner,),
        }

    def config(self) -> dict[str, object]:
        """Return config.json without `architectures`.

        With it, lora-export would also run the model in float64 where memory allows. The cost of
        verification would then depend on the free memory. Only the proof by weights is measured
        here. transformers needs `model_type` only.
        """
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(128, 2, 352, 4, 2, 512),
    "1b": Shape(2048, 22, 5632, 32, 4, 32_000),  # TinyLlama: 1.1 B parameters, 2.2 GB
    "4b": Shape(3072, 38, 8192, 24, 8, 32_000),  # Llama 3.2 3B with more layers: 4 B, 8 GB
    "8b": Shape(4096, 32, 14336, 32, 8, 128_256),  # Llama 3.1 8B: 16 GB
    "wide": Shape(2048, 1, 5632, 32, 4, 1 << 19),  # table and head of 2 GB each
}


def make_base(shape: Shape, folder: Path, *, shards: int = SHARDS) -> int:
    """Write config.json, the shards in bf16 and their index; the weights' bytes are returned."""
    folder.mkdir(parents=True)
    sizes = {name: 2 * int(np.prod(dims)) for name, dims in shape.weights().items()}
    files: dict[str, str] = {}
    parts = list(_split(sizes, shards))
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        _write_shard(folder / file, {name: shape.weights()[name] for name in names})
        files |= dict.fromkeys(names, file)
    total = sum(sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", shape.config())
    return total


def make_adapters(shape: Shape, folder: Path, targets: str) -> tuple[Path, Path]:
    """Write one adapter in two forms with the same float32 factors: (loralib file, PEFT folder).

    float32 is what both libraries train in beside a half-precision base. B is not zero, as after
    training: a zero B would let a merge that does nothing pass for exact.
    """
    from safetensors.numpy import save_file

    factors = dict(_factors(shape, targets))
    loralib, peft = folder / f"{targets}.safetensors", folder / f"{targets}-peft"
    peft.mkdir(parents=True)
    save_file(factors, loralib)
    renamed = {f"base_model.model.{name}.weight": value for name, value in factors.items()}
    save_file(renamed, peft / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS[targets]),
        "inference_mode": True,
    }
    _write_json(peft / "adapter_config.json", config)
    return loralib, peft


def _factors(shape: Shape, targets: str) -> Iterator[tuple[str, Matrix]]:
    """Yield the factors in loralib's names; the update is about a fifth of the weights' spread."""
    for name, dims in shape.weights().items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS[targets]:
            rows, columns = dims
            down, up = (_random(f"{module}.{role}") for role in "AB")
            yield (
                f"{module}.lora_A",
                down.standard_normal((RANK, columns), np.float32) / (np.float32(np.sqrt(columns))),
            )
            yield (
                f"{module}.lora_B",
                up.standard_normal((rows, RANK), np.float32) * (np.float32(SPREAD)),
            )


def _split(sizes: dict[str, int], shards: int) -> Iterator[list[str]]:
    """Return the tensors in their order, in at most `shards` parts of about the same bytes."""
    total, before = sum(sizes.values()), 0
    parts: dict[int, list[str]] = {}
    for name, size in sizes.items():
        parts.setdefault((before + size // 2) * shards // total, []).append(name)
        before += size
    yield from parts.values()


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shapes.items():
        start, end = end, end + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, dims in shapes.items():
            _write_weight(file, name, dims)


def _write_weight(file: BinaryIO, name: str, dims: tuple[int, ...]) -> None:
    """Write one tensor in bf16, the upper half of a float32; values of norms lie around 1."""
    random = _random(name)
    center = np.float32(1.0 if len(dims) == 1 else 0.0)
    left = int(np.prod(dims))
    while left:
        count = min(left, BLOCK)
        block = random.standard_normal(count, np.float32) * np.float32(SPREAD) + center
        file.write((block.view(np.uint32) >> 16).astype("<u2").tobytes())
        left -= count


def _random(name: str) -> np.random.Generator:
    """Return a stream for each tensor, so that its values do not depend on the others."""
    return np.random.Generator(np.random.SFC64([SEED, zlib.crc32(name.encode())]))


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write FOLDER/base and the adapters beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--targets", choices=TARGETS, action="append", help="default: qv, all")
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    total = make_base(shape, given.folder / "base")
    print(f"{given.folder / 'base'}: {total:,} bytes of weights")
    for targets in given.targets or ("qv", "all"):
        print(*make_adapters(shape, given.folder, targets), sep="\n")


if __name__ == "__main__":
    main()
