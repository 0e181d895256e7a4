"""Reads .pt, .pth and .bin checkpoints of torch.save without torch and without executing anything.

Only the layout is read: every tensor becomes a TensorRef to its bytes in the file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.header import name_fault
from lora_export.checkpoint.limits import bound_tensors
from lora_export.checkpoint.reading import ZIP_START, fail_on, read_start
from lora_export.checkpoint.torch_save.containers import (
    NOT_RUN,
    choose_state_dict,
    count_tensors,
    direct_tensors,
    is_short,
    is_training_key,
    key_text,
)
from lora_export.checkpoint.torch_save.inert import Opaque
from lora_export.checkpoint.torch_save.torch_legacy import read_torch_legacy
from lora_export.checkpoint.torch_save.torch_values import Storage, StoredTensor, is_tensor_like
from lora_export.checkpoint.torch_save.torch_zip import read_torch_zip
from lora_export.errors import InputError
from lora_export.records import Problem, TensorRef, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.checkpoint.torch_save.torch_values import Place, TorchObject


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The state dict of a file."""

    tensors: tuple[TensorRef, ...]
    """The tensors in the order of the state dict."""
    metadata: Mapping[str, str]
    """The str, int, float and bool entries beside the tensors, as strings."""
    wrapper: str
    """The keys, joined by dots, under which the state dict lies; "" when it is the whole object."""
    notes: tuple[str, ...] = ()
    """What was not opened, for the user."""


def read_pickles(path: Path) -> TorchFile:
    """Read the state dict of a file of torch.save, in the zip format or the one before torch 1.6.

    Reproduces, as byte ranges, what torch.load(weights_only=True, map_location="cpu") of torch
    2.13 gives. Objects of a trainer's own classes beside the weights are left closed; torch
    refuses such files.

    Raises:
        InputError: the file is damaged, ambiguous or of another kind, or names a function to call.
            Or it holds quantised, sparse or foreign tensors. Every problem is named.
        LimitError: the pickle is too big, or holds too many tensors for the file's size.
        StorageError: the file cannot be read.
    """
    is_zip = read_start(path, len(ZIP_START)) == ZIP_START
    stored = read_torch_zip(path) if is_zip else read_torch_legacy(path)
    _refuse_calls(stored, path)
    chosen = choose_state_dict(stored.root, path)
    seen: set[int] = set()
    count = len(direct_tensors(chosen.entries))
    bound_tensors(count, path.stat().st_size, str(path))
    problems: list[Problem] = []
    tensors: list[TensorRef] = []
    metadata: dict[str, str] = {}
    for key, value in chosen.entries.items():
        where = f"{path}: {key_text(key)!r}"
        if isinstance(value, StoredTensor):
            found = _tensor_ref(path, key, value, stored)
            if isinstance(found, str):
                problems.append(Problem(found, where, cause="input/torch-file"))
            else:
                tensors.append(found)
        elif fault := _entry_fault(key, value, seen):
            hint = value.hint if isinstance(value, Opaque) else ""
            problems.append(Problem(fault, where, hint, cause="input/torch-file"))
        elif isinstance(key, str) and is_short(value):
            metadata[key] = str(value)
    fail_on(problems)
    return TorchFile(tuple(tensors), metadata, chosen.wrapper, _left_closed(stored, path))


def _refuse_calls(stored: TorchObject, path: Path) -> None:
    """Refuse a file that names a function to call; the hint shows how to save its weights alone."""
    calls = stored.named.listed_calls()
    if not calls:
        return
    keys: list[str] = []
    with suppress(InputError):  # the hint is then without the keys that lead to the weights
        keys = choose_state_dict(stored.root, path).wrapper.split(".")
    inside = "".join(f"[{key!r}]" for key in keys if key.isidentifier())
    raise InputError(
        f"its pickle calls {calls}, which makes no tensor, container or plain value; {NOT_RUN}",
        where=str(path),
        hint="where the file was made, save its weights alone: "
        f"torch.save(checkpoint{inside}, 'weights.pt')",
        cause="input/pickle-code",
    )


def _left_closed(stored: TorchObject, path: Path) -> tuple[str, ...]:
    objects = stored.named.listed_objects()
    return (f"{path.name}: objects of {objects} were not opened",) if objects else ()


def _tensor_ref(
    path: Path, key: object, tensor: StoredTensor, stored: TorchObject
) -> TensorRef | str:
    """Return the tensor's ref, or what is wrong with the tensor."""
    if not isinstance(key, str):
        return "the name of this tensor is no string"
    place = stored.places.get(tensor.storage.key)
    if fault := name_fault(key) or _place_fault(place, tensor):
        return fault
    offset = place.offset + tensor.offset if place else 0
    spec = TensorSpec(key, tensor.dtype, tensor.shape)
    return TensorRef(spec, path, offset, tensor.span, tensor.layout)


def _place_fault(place: Place | None, tensor: StoredTensor) -> str:
    needed = tensor.storage.nbytes
    # A tensor without elements needs no byte of the file, so a missing storage does no harm.
    if tensor.span == 0 and (place is None or place.fault):
        return ""
    if place is None:
        return "the file does not hold its storage"
    if place.fault:
        return place.fault.message
    return "" if place.nbytes == needed else f"storage of {place.nbytes:,} bytes, not {needed:,}"


def _entry_fault(key: object, value: object, seen: set[int]) -> str:
    """Return why a value that is no tensor may not lie among the tensors, or "".

    seen: ids of the containers that were searched; one may lie under thousands of keys.
    """
    if is_training_key(key):
        return ""
    if isinstance(value, Opaque):
        return _opaque_fault(key, value)
    if isinstance(value, Storage):
        return "a storage of torch, not a tensor"
    if inside := count_tensors(value, seen):
        return f"{inside} more tensors lie in this {type(value).__name__} inside the state dict"
    return ""


def _opaque_fault(key: object, value: Opaque) -> str:
    # torch.nn.Module.get_extra_state stores any object under this name; it is no weight.
    is_state = isinstance(key, str) and key.endswith("_extra_state")
    if is_state or not (is_tensor_like(value) or "." in key_text(key)):
        return ""
    return f"not a plain dense tensor but {value.name[:200]}, which cannot be merged"
