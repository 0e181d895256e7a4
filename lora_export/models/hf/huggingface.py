"""A model from a Hugging Face folder, by transformers (extra `hf`); never with remote code.

transformers is used to build a model for tracing and for forward checks, never to merge.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError, InputError, MissingExtraError, UsageError
from lora_export.models.hf.blank import blank_state, without_notes
from lora_export.models.hf.bounds import bounded_modules
from lora_export.models.hf.full_values import slot, with_value
from lora_export.models.hf.model_class import class_of, config_of
from lora_export.models.hf.name_table import read_name_table
from lora_export.models.hf.plain_folder import without_adapter
from lora_export.models.hf.processor import processor_config
from lora_export.models.hf.spelling import Spelling
from lora_export.models.hf.streamed import Placed, sources_by_name, stand_ins
from lora_export.models.inputs.positions import positions
from lora_export.models.inputs.usual_inputs import Known, usual_inputs
from lora_export.models.network.calling import FAILURES
from lora_export.models.network.loralib_modules import read_facts
from lora_export.models.network.quiet import quiet
from lora_export.models.network.state import same_values, untie
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.names.misfit import transformers_installed
from lora_export.records import Problem
from lora_export.report.columns import first_names
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from lora_export.records import (
        Checkpoint,
        Facts,
        InputSpec,
        MergePlan,
        ModelFacts,
        NameTable,
        TensorRef,
    )


_TASK = "--task builds another class of the model, e.g. text-classification"


class HuggingFaceModel:
    """A model source backed by transformers' from_pretrained; see source.ModelSource."""

    #: See source.ModelSource.
    prefers_streaming = True

    def __init__(
        self, base: Checkpoint, inputs: tuple[InputSpec, ...], task: str | None = None
    ) -> None:
        """Find the class and read the configuration; no weights are read.

        Args:
            base: a folder with config.json.
            inputs: as given to --input; empty for the usual ones.
            task: decides the class, as tasks.class_for; None leaves it to config.json.

        Raises:
            MissingExtraError: transformers is not installed.
            InputError: config.json names no architecture of transformers, or transformers cannot
                read it.
            UsageError: there is no class for the task.
        """
        if not transformers_installed():
            raise MissingExtraError(
                "a Hugging Face folder needs transformers to be built as a model",
                where=str(base.root),
                hint="pip install 'lora-export[hf]', or name a factory with --model",
                cause="missing-extra/hf",
            )
        self._label = str(base.root)
        self._base = base
        #: The class of transformers that the models are of.
        self.model_class = class_of(base, task)
        #: The transformers configuration of the models.
        self.config = config_of(base, self.model_class)
        self._given = inputs
        self._processor = partial(processor_config, base.root)
        self._spelling = Spelling(self.model_class.base_model_prefix, lambda: self.names)
        #: Of each dtype, the model whose weights were placed last.
        self._kept: dict[str, Placed] = {}

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Return the inputs of --input, else the usual ones of the architecture.

        Raises:
            UsageError: neither is known.
        """
        return self._given or usual_inputs(
            self.model_class, self.config, self._label, Known(self.positions, self._processor)
        )

    def declare(self, inputs: tuple[InputSpec, ...]) -> None:
        """Take these inputs from now on, in the place of the usual ones."""
        self.inputs = inputs

    def positions(self, text: Any) -> int | None:
        """Return how many tokens a text model of this one takes; None where no table bounds them.

        text: the configuration of the text model.
        """
        return positions(text, self.skeleton())

    def facts(self) -> ModelFacts:
        """Read the facts of the model built without weights."""
        return read_facts(self.skeleton(), self._label)

    def layers(self) -> Callable[[str], Facts | None]:
        """Return a function from the base's name of a module to its facts.

        It returns None for a module that the model does not have.
        """
        found = self.facts()
        modules = {name: replace(f, source=found.source) for name, f in found.modules.items()}
        return lambda name: next(
            (modules[n] for n in self._spelling.of(name) if n in modules), None
        )

    @cached_property
    def names(self) -> NameTable | None:
        """Read the table of names that checkpoints call otherwise; None before transformers 5."""
        with quiet():
            return read_name_table(self.skeleton())

    def skeleton(self) -> nn.Module:
        """Build the model without weights, on the meta device.

        Raises:
            InputError: transformers cannot build it from this configuration.
            LimitError: it has too many modules for the tensors of the base.
        """
        import torch

        try:
            with quiet(), bounded_modules(self._base), torch.device("meta"):
                skeleton: nn.Module = self.model_class(self.config)
                return skeleton
        except FAILURES as error:
            reason = reason_of(error)
            message = f"transformers cannot build {self.model_class.__name__}: {reason}"
            raise InputError(message, where=self._label, cause="input/model-class") from error

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.load."""
        from lora_export.checkpoint.tensors import read_tensor

        model, info = self._from_pretrained(checkpoint, checkpoint.root, dtype)
        self._make_ready(model, untied)
        targets = self._targets(model, info, full)
        state = model.state_dict()
        for name, ref in full.items():
            slot(self.names, state[targets[name]], name, ref).copy_(read_tensor(ref))
        return model

    def stream(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.stream: transformers places stand-ins for the stored tensors."""
        from lora_export.models.streaming.placing import replace_tensors

        placed = self._placed(checkpoint, dtype)
        model = deepcopy(placed.model)
        targets = self._targets(model, placed.info, full)
        unknown = [name for name in placed.unknown if name not in targets.values()]
        if unknown:
            message = (
                f"transformers makes {first_names(unknown)} of stored tensors as it loads them"
            )
            raise UsageError(message, where=self._label, cause="usage/not-streamed")
        self._make_ready(model, untied)
        state = model.state_dict(keep_vars=True)
        given = dict(state)
        for name, ref in full.items():
            target = targets[name]
            given[target] = with_value(self.names, given[target], name, ref)
        replace_tensors(model, [(state[n], new) for n, new in given.items() if new is not state[n]])
        return model

    def _placed(self, checkpoint: Checkpoint, dtype: str) -> Placed:
        """Place a checkpoint's tensors once; the models that are streamed are copies of this one.

        Raises:
            UsageError: transformers converts a stored tensor in a way that no rows follow.
        """
        from lora_export.models.streaming.placing import place_rows

        kept = self._kept.get(dtype)
        if kept is not None and kept.checkpoint is checkpoint:
            return kept
        skeleton = self.skeleton()
        names, apart = BaseNames(skeleton.state_dict()), self._untied(checkpoint, skeleton)
        own = self._spelling.state_names(names, checkpoint.tensors())
        marked = {name for name, found in own.items() if found in apart}
        made = stand_ins(checkpoint, self.names, dtype, marked=marked)
        if made.obstacle:
            raise UsageError(made.obstacle, where=self._label, cause="usage/not-streamed")
        settings = {"config": deepcopy(self.config), "state_dict": dict(made.state)}
        model, info = self._from_pretrained(checkpoint, None, dtype, **settings)
        found, unknown = sources_by_name(model, made, own)
        place_rows(model, found)
        self._kept[dtype] = Placed(checkpoint, model, info, unknown)
        return self._kept[dtype]

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """See source.ModelSource.blank: built as `load` does, of weights that cost no memory."""
        skeleton = self.skeleton()
        state = blank_state(skeleton, dtype, marked=self._untied(checkpoint, skeleton))
        settings = {"config": deepcopy(self.config), "state_dict": state}
        model, _ = self._from_pretrained(checkpoint, None, dtype, **settings)
        self._make_ready(model, untied)
        return model

    def identity(self, checkpoint: Checkpoint) -> dict[str, object]:
        """See source.ModelSource.identity: class, config, and tied parameters stored apart."""
        return {
            "class": f"{self.model_class.__module__}.{self.model_class.__qualname__}",
            "config": without_notes(checkpoint.config),
            "apart": sorted(self._untied(checkpoint, self.skeleton())),
        }

    def _untied(self, checkpoint: Checkpoint, skeleton: nn.Module) -> set[str]:
        """Find the tied parameters for which the checkpoint holds other values than for the first.

        transformers separates such a tie when it loads the checkpoint.
        """
        state = skeleton.state_dict()
        names, groups = BaseNames(state), read_facts(skeleton, self._label).ties
        shapes = {tuple(state[name].shape) for group in groups for name in group}
        alike = {n: r for n, r in checkpoint.tensors().items() if r.spec.shape in shapes}
        own = self._spelling.state_names(names, alike)
        stored = {own[name]: ref for name, ref in alike.items()}
        found = [[name for name in group if name in stored] for group in groups]
        return {
            other  # the first of a group keeps the tie's name
            for first, *others in filter(None, found)
            for other in others
            if not same_values(stored[first], stored[other])
        }

    def _from_pretrained(
        self, checkpoint: Checkpoint, root: Path | None, dtype: str, **settings: object
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        import torch

        try:
            with quiet(), bounded_modules(self._base), without_adapter(root) as folder:
                model, info = self.model_class.from_pretrained(
                    folder,
                    dtype=getattr(torch, dtype),
                    local_files_only=True,
                    output_loading_info=True,
                    **settings,
                )
        except (*FAILURES, OSError) as error:
            reason = reason_of(error)
            message = f"transformers cannot build {self.model_class.__name__}: {reason}"
            raise InputError(
                message, where=str(checkpoint.root), cause="input/model-class"
            ) from error
        return model, info

    def _make_ready(self, model: Any, untied: Sequence[str]) -> None:
        """Separate ties and set eval mode, in place."""
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the others have no kernels for float64
        found = self._spelling.state_names(BaseNames(model.state_dict()), untied)
        own = [target or name for name, target in found.items()]
        untie(model, [name for name in own if self._is_tied(model, name)])
        model.eval().requires_grad_(requires_grad=False)

    def load_live(self, plan: MergePlan) -> nn.Module | None:  # noqa: ARG002 - the protocol's
        """Return None: transformers' models hold no loralib modules."""
        return None

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module; names may lack the prefix of the model without head."""
        return self._spelling.module(model, name)

    def _is_tied(self, model: nn.Module, name: str) -> bool:
        groups = read_facts(model, self._label).ties
        return any(name in group for group in groups)

    def _targets(
        self, model: nn.Module, info: Mapping[str, Any], full: Iterable[str]
    ) -> dict[str, str]:
        """Find the model's tensors for full tensors; refuse a model that is not filled with them.

        info: what transformers reports of missing and mismatched keys.

        Raises:
            FitError: the model has no place for a full tensor.
            InputError: a parameter has no value, or one of another shape.
        """
        found = self._spelling.state_names(BaseNames(model.state_dict()), full)
        problems = [
            Problem(
                "the model has no such parameter",
                name,
                f"{self._hint()} {_TASK}",
                cause="fit/other-model",
            )
            for name, target in found.items()
            if target is None
        ]
        if problems:
            raise FitError.of(problems)
        targets = {name: target for name, target in found.items() if target is not None}
        self._refuse_incomplete(info, targets)
        return targets

    def _refuse_incomplete(self, info: Mapping[str, Any], targets: Mapping[str, str]) -> None:
        """Refuse missing and mismatched keys: transformers would draw their values at random."""
        problems = [
            Problem(
                "the checkpoint holds no value for it",
                key,
                self._hint(),
                cause="input/incomplete-base",
            )
            for key in sorted(info["missing_keys"])
            if key not in targets.values()
        ]
        problems += [
            Problem(
                "has another shape in the model",
                str(key),
                self._hint(),
                cause="input/incomplete-base",
            )
            for key in info["mismatched_keys"]
        ]
        if problems:
            raise InputError.of(problems)

    def _hint(self) -> str:
        return f"is {self.model_class.__name__} the architecture of this checkpoint?"
