"""Put a checkpoint's tensors into a model: every tensor lands, every parameter is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor
from lora_export.errors import FitError
from lora_export.models.loralib_modules import ties
from lora_export.planning.names import BaseNames, without_wrappers
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.records import TensorRef


def load_strictly(model: nn.Module, tensors: Mapping[str, TensorRef], source: str) -> None:
    """Copy `tensors` (by checkpoint name) into `model`.

    Raises:
        FitError: a tensor has no place or another shape, or a parameter is left unset.
    """
    state = model.state_dict()
    names = BaseNames(state)
    placed: dict[str, TensorRef] = {}
    problems = []
    for name, ref in tensors.items():
        target = names.tensor(name)
        if target is None:
            problems.append(Problem("the model has no such parameter or buffer", name))
        elif tuple(state[target].shape) != ref.spec.shape:
            shapes = f"{list(ref.spec.shape)}, in the model {list(state[target].shape)}"
            problems.append(Problem(f"has shape {shapes}", name))
        else:
            placed[target] = ref
    problems += _unset(model, state.keys() - placed.keys(), placed.keys())
    if problems:
        hint = f"does {source} build the model that this checkpoint belongs to?"
        raise FitError.of([Problem(p.message, p.where, hint) for p in problems])
    for name, ref in placed.items():
        state[name].copy_(read_tensor(ref))


def _unset(model: nn.Module, missing: set[str], placed: object) -> list[Problem]:
    """Parameters left without a value; one that is tied to a set one has its value."""
    covered = {name for group in ties(model) if any(n in placed for n in group) for name in group}  # type: ignore[operator]
    return [
        Problem("the checkpoint holds no value for it", name) for name in sorted(missing - covered)
    ]


def untie(model: nn.Module, names: Sequence[str]) -> None:
    """Give each parameter, by checkpoint name, a tensor of its own, with the value it has now."""
    from torch import nn

    known = BaseNames(dict(model.named_parameters(remove_duplicate=False)))
    for wanted in names:
        name = known.tensor(without_wrappers(wanted)) or wanted
        owner, _, leaf = name.rpartition(".")
        parameter = model.get_parameter(name)
        copy = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, copy)
