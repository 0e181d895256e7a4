"""A checkpoint's tensors in a model: every tensor is placed, and every parameter is set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.errors import FitError
from lora_export.models.network.loralib_modules import ties
from lora_export.planning.names.base_names import BaseNames, without_wrappers
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.records import TensorRef


def load_strictly(model: nn.Module, tensors: Mapping[str, TensorRef], source: str) -> None:
    """Copy `tensors` (by checkpoint name) into `model`; values are cast to the model's dtypes.

    source: names where the model's code is, for the hint.

    Raises:
        FitError: see place_strictly.
    """
    state = model.state_dict()
    for name, ref in place_strictly(model, tensors, source).items():
        state[name].copy_(read_tensor(ref))


def place_strictly(
    model: nn.Module, tensors: Mapping[str, TensorRef], source: str
) -> dict[str, TensorRef]:
    """Return `tensors` by the model's names instead of the checkpoint's.

    source: names where the model's code is, for the hint.

    Raises:
        FitError: a tensor has no place or another shape, a parameter is left unset, or two names
            of one parameter have different values.
    """
    state = model.state_dict()
    names = BaseNames(state)
    placed: dict[str, TensorRef] = {}
    problems: list[Problem] = []
    for name, ref in tensors.items():
        target = names.tensor(name)
        if target is None:
            problems.append(
                Problem("the model has no such parameter or buffer", name, cause="fit/other-model")
            )
        elif tuple(state[target].shape) != ref.spec.shape:
            shapes = f"{list(ref.spec.shape)}, in the model {list(state[target].shape)}"
            problems.append(Problem(f"has shape {shapes}", name, cause="fit/other-model"))
        elif not same_values(placed.setdefault(target, ref), ref):
            problems.append(
                Problem(
                    f"{placed[target].spec.name} has other values", name, cause="fit/other-model"
                )
            )
    problems += _unset(model, state.keys() - placed.keys(), placed.keys())
    if problems:
        hint = f"does {source} build the model that this checkpoint belongs to?"
        raise FitError.of([replace(p, hint=hint) for p in problems])
    _refuse_conflicts(model, placed)
    return placed


def _refuse_conflicts(model: nn.Module, placed: Mapping[str, TensorRef]) -> None:
    """Refuse two values for one parameter: the last would win without a word.

    Raises:
        FitError: two names of one parameter have different values; all are named.
    """
    problems = []
    for group in ties(model):
        first, *others = [name for name in group if name in placed] or [""]
        hint = f"untie {' and '.join(group)} in the model's code: they are one parameter there"
        problems += [
            Problem(
                f"differs from {first}, with which it shares one parameter",
                other,
                hint,
                cause="fit/other-model",
            )
            for other in others
            if not same_values(placed[first], placed[other])
        ]
    if problems:
        raise FitError.of(problems)


def same_values(left: TensorRef, right: TensorRef) -> bool:
    """Return whether both tensors hold the same values; their dtypes may differ."""
    import torch

    if left.spec.dtype == right.spec.dtype:
        return same_content(left, right)
    wide = torch.promote_types(torch_dtype(left.spec.dtype), torch_dtype(right.spec.dtype))
    return torch.equal(read_tensor(left).to(wide), read_tensor(right).to(wide))


def _unset(model: nn.Module, missing: set[str], placed: object) -> list[Problem]:
    """List a problem for each parameter without a value; one tied to a set parameter has one."""
    covered = {name for group in ties(model) if any(n in placed for n in group) for name in group}  # type: ignore[operator]
    return [
        Problem("the checkpoint holds no value for it", name, cause="fit/other-model")
        for name in sorted(missing - covered)
    ]


def untie(model: nn.Module, names: Sequence[str]) -> None:
    """Give each parameter, by checkpoint name, a tensor of its own, with the value it has now."""
    from torch import nn

    known = BaseNames(name for name, _ in model.named_parameters(remove_duplicate=False))
    for given in names:
        name = known.tensor(without_wrappers(given)) or given
        owner, _, leaf = name.rpartition(".")
        parameter = model.get_parameter(name)
        copy = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, copy)
