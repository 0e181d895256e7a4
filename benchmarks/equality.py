"""Compare a merged folder with the results of the libraries, bit for bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import loralib
import torch
from make_llama import ALPHA, RANK
from safetensors import safe_open
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 1 << 16  # a weight of 2 GB is merged by loralib in several parts, or it would take 13 GB


class Folder:
    """The tensors of a sharded folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the shards that the folder's index names."""
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        self.files: dict[str, str] = index["weight_map"]
        self._shards = {
            name: safe_open(folder / name, framework="pt") for name in set(self.files.values())
        }

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor of this name."""
        shard: Any = self._shards[self.files[name]]  # safetensors gives its methods no types
        found: torch.Tensor = shard.get_tensor(name)
        return found


def unlike_folder(output: Path, reference: Path) -> list[str]:
    """Return the names of tensors that differ in two folders, or are in one of them only."""
    ours, theirs = Folder(output), Folder(reference)
    alone = ours.files.keys() ^ theirs.files.keys()
    both = sorted(ours.files.keys() & theirs.files.keys())
    return [*sorted(alone), *(n for n in both if not _same(ours.tensor(n), theirs.tensor(n)))]


def unlike_loralib(output: Path, base: Path, adapter: Path) -> list[str]:
    """Return the names of tensors that differ from the result of loralib's own `eval()`."""
    ours, unmerged, factors = Folder(output), Folder(base), load_file(adapter)
    alone = ours.files.keys() ^ unmerged.files.keys()
    both = sorted(ours.files.keys() & unmerged.files.keys())
    return [*sorted(alone), *(n for n in both if not _as_loralib(n, ours, unmerged, factors))]


def _as_loralib(
    name: str, ours: Folder, unmerged: Folder, factors: dict[str, torch.Tensor]
) -> bool:
    found, expected = ours.tensor(name), unmerged.tensor(name)
    module = name.removesuffix(".weight")
    if f"{module}.lora_A" not in factors:
        return _same(found, expected)
    if found.shape != expected.shape:
        return False
    down, up = factors[f"{module}.lora_A"], factors[f"{module}.lora_B"]
    return all(
        _same(found[at : at + ROWS], _evaluated(expected[at : at + ROWS], down, up[at : at + ROWS]))
        for at in range(0, len(expected), ROWS)
    )


@torch.no_grad()
def _evaluated(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return the weight of a real loralib layer in eval mode."""
    layer = loralib.Linear(1, 1, r=RANK, lora_alpha=ALPHA, bias=False)
    layer.weight.data, layer.lora_A.data, layer.lora_B.data = weight.clone(), down, up
    layer.eval()
    evaluated: torch.Tensor = layer.weight.data
    return evaluated


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
