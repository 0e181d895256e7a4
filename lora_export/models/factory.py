"""A model from the user's own code: `package.module:function` or `path/to/file.py:function`.

This is the only place where code of the user runs, and only because it was named on the command
line. The function takes no arguments and returns the module; beside it, INPUTS may declare the
model's inputs in the grammar of --input.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError, UsageError
from lora_export.models.inputs import parse_inputs
from lora_export.models.loralib_modules import is_live, keep_unmerged, read_facts, remove_factors
from lora_export.models.state import load_strictly, untie
from lora_export.planning.names import BaseNames, join

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from torch import nn

    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef


class FactoryModel:
    """A model source backed by the user's factory; see source.ModelSource."""

    def __init__(self, target: str, inputs: tuple[InputSpec, ...]) -> None:
        """`target` as given to --model; `inputs` from --input, empty to use the module's INPUTS."""
        self.target = target
        self._module, self._factory = _load(target)
        self._given = inputs

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """--input, or the INPUTS that the module of the factory declares."""
        declared = getattr(self._module, "INPUTS", ())
        texts = (declared,) if isinstance(declared, str) else tuple(declared)
        inputs = self._given or parse_inputs(texts)
        if not inputs:
            raise UsageError(
                "the model's inputs are not declared",
                where=self.target,
                hint="--input 'input_ids=int64[batch,sequence]<30522' for each input, or a tuple "
                "INPUTS of such texts beside the factory",
            )
        return inputs

    def facts(self) -> ModelFacts:
        """Facts from the loralib and plain modules of a freshly built model."""
        return read_facts(self._build(), self.target)

    def load(
        self, checkpoint: Checkpoint, *, full: Mapping[str, TensorRef], untied: Sequence[str]
    ) -> nn.Module:
        """See source.ModelSource.load."""
        model = self._build()
        remove_factors(model)
        untie(model, untied)
        model.float().eval().requires_grad_(requires_grad=False)
        load_strictly(model, {**checkpoint.tensors(), **full}, self.target)
        return model

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live; None unless every update has its own module."""
        model = self._build()
        live = {name for name, module in model.named_modules() if is_live(module)}
        deltas = {delta.module: delta for step in plan.steps() for delta in step.deltas}
        if set(deltas) != live or len(plan.adapters) > 1 or plan.adapters[0].weight != 1.0:
            return None
        keep_unmerged(model)
        model.float().eval().requires_grad_(requires_grad=False)
        factors = {
            join(module, f"lora_{role}"): ref
            for module, delta in deltas.items()
            for role, ref in delta.factors.items()
        }
        load_strictly(model, {**plan.base.tensors(), **plan.full_tensors(), **factors}, self.target)
        return model

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        modules: dict[str, nn.Module] = dict(model.named_modules())
        found = BaseNames(modules).find(name)
        if found is None:
            raise FitError("the model has no such module", where=name)
        return modules[found]

    def _build(self) -> nn.Module:
        from torch import nn

        try:
            model: object = self._factory()
        except Exception as error:
            message = f"the factory raised {type(error).__name__}: {error}"
            raise UsageError(message, where=self.target, hint="--debug shows where") from error
        if not isinstance(model, nn.Module):
            message = f"the factory returned {type(model).__name__}, not a torch.nn.Module"
            raise UsageError(message, where=self.target)
        return model


def _load(target: str) -> tuple[ModuleType, Callable[[], Any]]:
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        hint = "package.module:build or path/to/model.py:build"
        raise UsageError(f"{target!r} names no function", where="--model", hint=hint)
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except Exception as error:
        message = f"cannot be imported: {type(error).__name__}: {error}"
        raise UsageError(message, where=place, hint="--debug shows where") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"has no function {name!r}", where=place)
    return module, factory


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's modules lie where they stand
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lora_export_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up
    spec.loader.exec_module(module)
    return module
