"""Finds the weights of a folder that holds none itself: in a sub-folder, or in pieces.

DeepSpeed's ZeRO and torch's distributed checkpoints cut every tensor in parts, so one piece cannot
be read alone. The message names the command that joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import module_folders
from lora_export.checkpoint.folder.weight_sets import holds_weights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SCRIPT = "zero_to_fp32.py"
"""DeepSpeed's script that joins the pieces."""

_DISTRIBUTED_METADATA = ".metadata"
"""The file in which torch.distributed.checkpoint describes its pieces."""

_FSDP = "pytorch_model_fsdp_"
"""How accelerate begins the name of a folder with a model in pieces."""

_PIPELINE = ("transformer", "unet", "text_encoder")
"""The parts of a diffusers pipeline on which adapters are trained, the most usual first."""

_SHOWN = 8
EMPTY = (
    "ZeRO-3 leaves empty tensors where the weights were not gathered: join them with 'python "
    f"{_SCRIPT} . OUT' in the training's checkpoint folder"
)
"""The hint for a tensor of shape [0]. DeepSpeed copies the script into each checkpoint."""


def elsewhere(folder: Path) -> str:
    """Return where the weights of a folder without any lie, as a hint; "" when nothing shows it."""
    if joining := _pieces(folder):
        return joining
    if (folder / "model_index.json").is_file():
        return _inside(folder, "a diffusers pipeline", _PIPELINE)
    if (folder / "modules.json").is_file():
        return _inside(folder, "a sentence-transformers model", sorted(module_folders(folder)))
    return ""


def _inside(folder: Path, kind: str, names: Iterable[str]) -> str:
    """Return a hint that lists the sub-folders with weights, those of `names` first."""
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    order = dict.fromkeys([name for name in names if name in inside] + inside)
    held = [name for name in order if not name.startswith(".") and holds_weights(folder / name)]
    if not held:
        return ""
    verb = "holds" if len(held) == 1 else "hold"
    return f"{kind}: {', '.join(held[:_SHOWN])} {verb} the weights: give {folder / held[0]}"


def _pieces(folder: Path) -> str:
    """Return what a folder holds in pieces and the command that joins them; "" when nothing."""
    if folder.name.startswith("global_step") and _has_zero_pieces(folder):
        return _zero(folder.parent)
    steps = [path for path in folder.glob("global_step*") if _has_zero_pieces(path)]
    if steps or (folder / _SCRIPT).is_file():
        return _zero(folder)
    places = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    pieces = [path for path in places if _is_distributed(path)]
    models = [path for path in pieces if path.name.startswith(_FSDP)]
    if models:
        return (
            f"{models[0].name} holds the model in pieces of FSDP: accelerate merge-weights "
            f"{models[0]} OUT"
        )
    if pieces:
        return (
            "torch's distributed checkpoint in pieces: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {pieces[0]} OUT.pt"
        )
    return ""


def _zero(folder: Path) -> str:
    script = _SCRIPT if (folder / _SCRIPT).is_file() else f"-m deepspeed.utils.{_SCRIPT[:-3]}"
    return f"DeepSpeed's checkpoint in pieces: cd {folder} && python {script} . OUT"


def _has_zero_pieces(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*_states.pt"))


def _is_distributed(folder: Path) -> bool:
    return (folder / _DISTRIBUTED_METADATA).is_file() and any(folder.glob("*.distcp"))
