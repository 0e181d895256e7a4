"""A model from the user's own code: `package.module:function` or `path/to/file.py:function`.

This is the only place where code of the user runs, and only because it was named on the command
line. The function takes no arguments and returns the module; beside it, INPUTS may declare the
model's inputs in the grammar of --input.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from lora_export.errors import FitError, UsageError
from lora_export.models.inputs.arrays import declared_by_arrays, describe_declared
from lora_export.models.inputs.grammar import GRAMMAR, parse_inputs
from lora_export.models.network.calling import user_code
from lora_export.models.network.loralib_modules import (
    is_live,
    keep_unmerged,
    read_facts,
    remove_factors,
)
from lora_export.models.network.state import load_strictly, place_strictly, untie
from lora_export.planning.names.base_names import BaseNames, join
from lora_export.planning.names.network_names import NetworkNames
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from torch import nn

    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef


_UNDECLARED = "the model's inputs are not declared"
_DECLARE = (
    "--input 'input_ids=int64[batch,sequence]<30522' for each input, or a tuple INPUTS of such "
    "texts beside the factory, or --inputs FILE.npz"
)


class FactoryModel:
    """A model source backed by the user's factory; see source.ModelSource."""

    #: See source.ModelSource.
    prefers_streaming = False

    def __init__(
        self, target: str, inputs: tuple[InputSpec, ...], arrays: Path | None = None
    ) -> None:
        """Import the factory.

        Args:
            target: as given to --model.
            inputs: as given to --input; empty to use the module's INPUTS.
            arrays: an .npz file that declares the inputs where neither does.

        Raises:
            UsageError: the factory cannot be imported or is no function.
        """
        #: The factory, as given to --model, for messages.
        self.target = target
        self._module, self._factory = _load(target)
        self._given = inputs
        self._arrays = arrays
        self._built: WeakSet[nn.Module] = WeakSet()
        self._names = NetworkNames()
        self._left_out: frozenset[str] = frozenset()

    def place(self, names: NetworkNames, left_out: Iterable[str]) -> None:
        """Build networks for a base with other names, or other tensors, from now on.

        Args:
            names: map names of the base to names of the network.
            left_out: tensors of the base that the network has no place for.
        """
        self._names, self._left_out = names, frozenset(left_out)

    def declare(self, inputs: tuple[InputSpec, ...]) -> None:
        """Take these inputs from now on, in the place of those that are declared elsewhere."""
        self._given = inputs

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Return the inputs of --input, else of the module's INPUTS, else of --inputs' arrays.

        Raises:
            UsageError: none of them declares the inputs.
            InputError: the arrays cannot declare any.
        """
        inputs = self._given or parse_inputs(self._declared())
        if not inputs and self._arrays:
            return declared_by_arrays(self._arrays)
        if not inputs:
            raise UsageError(
                _UNDECLARED, where=self.target, hint=_DECLARE, cause="usage/model-inputs"
            )
        return inputs

    def why_no_inputs(self) -> str:
        """Return why the model cannot be run and what to do; empty where inputs are declared."""
        if self._given or self._arrays or self._declared():
            return ""
        return f"{_UNDECLARED} ({_DECLARE})"

    def warnings(self) -> tuple[str, ...]:
        """Return a warning where only arrays declare the inputs."""
        if not self._arrays or self._given or self._declared():
            return ()
        return (describe_declared(self.inputs, self._arrays),)

    def _declared(self) -> tuple[str, ...]:
        declared = getattr(self._module, "INPUTS", ())
        texts = (declared,) if isinstance(declared, str) else declared
        if isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
        message = f"INPUTS = {declared!r} is no text and no tuple of texts"
        raise UsageError(
            message, where=self.target, hint=f"write {GRAMMAR}", cause="usage/model-inputs"
        )

    def facts(self) -> ModelFacts:
        """Read the facts of the loralib and plain modules of a freshly built model."""
        return read_facts(self._build(), self.target)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.load."""
        model = self._plain(untied, dtype, zeros=True)
        load_strictly(model, self._placed({**checkpoint.tensors(), **full}), self.target)
        return model

    def stream(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.stream: the factory builds its network without weights."""
        from lora_export.models.network.unweighted import without_weights
        from lora_export.models.streaming.placing import place_rows, weightless
        from lora_export.models.streaming.row_sources import FileRows

        with without_weights():
            model = self._plain(untied, dtype, zeros=True)
        placed = place_strictly(model, self._placed({**checkpoint.tensors(), **full}), self.target)
        place_rows(model, {name: FileRows(ref) for name, ref in placed.items()})
        if names := weightless(model):
            message = f"the network keeps {first_names(names)} where no weight can be placed"
            raise UsageError(message, where=self.target, cause="usage/not-streamed")
        return model

    def _placed(self, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
        """Return the tensors by the network's names, without those that it has no place for."""
        kept = {name: ref for name, ref in tensors.items() if name not in self._left_out}
        return {self._names.tensor(name): ref for name, ref in kept.items()}

    def blank(
        self,
        checkpoint: Checkpoint,  # noqa: ARG002 - the factory alone decides
        *,
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.blank: the model has the weights that the factory drew.

        Cheaper weights in their place would break aliases that the user's code has of a weight.
        Such an alias could no longer be found, and refused.
        """
        return self._plain(untied, dtype, zeros=False)

    def _plain(self, untied: Sequence[str], dtype: str, *, zeros: bool) -> nn.Module:
        """Build the model without low-rank factors, in eval mode.

        zeros: see loralib_modules.remove_factors.
        """
        import torch

        model = self._build()
        remove_factors(model, zeros=zeros)
        untie(model, [self._names.tensor(name) for name in untied])
        return model.to(getattr(torch, dtype)).eval().requires_grad_(requires_grad=False)

    def identity(self, checkpoint: Checkpoint) -> None:
        """See source.ModelSource.identity: None, as the user's code may read anything."""

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live; None unless every update has its own module."""
        deltas = {delta.module: delta for step in plan.steps() for delta in step.deltas}
        if len(plan.adapters) > 1 or plan.adapters[0].weight != 1.0:
            return None
        model = self._build()
        adapted = {self.module(model, name) for name in deltas}
        if not all(map(is_live, adapted)):
            return None
        remove_factors(model, keep=adapted)
        keep_unmerged(model)
        model.float().eval().requires_grad_(requires_grad=False)
        factors = {
            join(self._names.module(module), f"lora_{role}"): ref
            for module, delta in deltas.items()
            for role, ref in delta.factors.items()
        }
        whole = self._placed({**plan.base.tensors(), **plan.full_tensors()})
        load_strictly(model, {**whole, **factors}, self.target)
        return model

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        found = BaseNames(modules).find(self._names.module(name))
        if found is None:
            raise FitError("the model has no such module", where=name, cause="fit/other-model")
        return modules[found]

    def _build(self) -> nn.Module:
        """Call the factory.

        Raises:
            UsageError: it raises, returns no module, or returns one that an earlier call returned.
        """
        from torch import nn

        with user_code("the factory raised", self.target):
            model: object = self._factory()
        if not isinstance(model, nn.Module):
            message = f"the factory returned {type(model).__name__}, not a torch.nn.Module"
            raise UsageError(message, where=self.target, cause="usage/model-function")
        self._refuse_used(model)
        return model

    def _refuse_used(self, model: nn.Module) -> None:
        """Refuse a module of an earlier call: it may hold other weights, or no factors, by now."""
        own = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
        if any(module in self._built for module in own):
            hint = "build every module inside the function that --model names"
            message = "the factory returned a module that an earlier call returned already"
            raise UsageError(message, where=self.target, hint=hint, cause="usage/model-function")
        self._built.update(own)


def _load(target: str) -> tuple[ModuleType, Callable[[], Any]]:
    """Import the module of a --model; return it with the function that the target names."""
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        hint = "package.module:build or path/to/model.py:build"
        raise UsageError(
            f"{target!r} names no function",
            where="--model",
            hint=hint,
            cause="usage/model-function",
        )
    if place.endswith(".py") and not Path(place).is_file():
        hint = "--model names a file of yours, as path/to/model.py:build"
        raise UsageError("no such file", where=place, hint=hint, cause="usage/model-function")
    with user_code("cannot be imported:", place):
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"has no function {name!r}", where=place, cause="usage/model-function")
    return module, factory


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's modules lie in the current folder
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lora_export_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up
    spec.loader.exec_module(module)
    return module
