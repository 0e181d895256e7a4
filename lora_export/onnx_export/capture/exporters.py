"""The exporters that trace a model: transformers' own for its models, else torch's.

Both need the model in a form that they can trace: a flat forward, no cache, no loop over experts.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.models.inputs.static_sizes import static_hint
from lora_export.models.network.calling import FAILURES, bind_call, name_outputs, without_cache
from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture import dimensions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir
    from torch import Tensor, nn

    from lora_export.records import InputSpec

REASON_LENGTH = 300
"""Characters of an exporter's error that a message quotes."""


def trace_model(
    model: nn.Module,
    inputs: Sequence[InputSpec],
    examples: dict[str, Tensor],
    opset: int | None,
) -> onnx_ir.Model:
    """Trace a model into an ONNX graph that no pass has changed, weights in memory.

    Args:
        model: in eval mode. Its forward is exchanged in the meantime.
        inputs: as declared, under names that parameters can have.
        examples: a tensor of every input; no dynamic dimension has the size 1.
        opset: ONNX operator set; None takes the exporter's own.

    Raises:
        InputError: no exporter can trace the model.
        UsageError: `forward` does not take these inputs.
    """
    with quiet(), without_cache(model), _flat_forward(model, inputs), _grouped_experts(model):
        if _is_transformers_model(model):
            # Torch's exporter, below, may still be able to; if not, its reason is the plainer one.
            with suppress(*FAILURES):
                return _by_transformers(model, inputs, dict(examples), opset)
        try:
            return _by_torch(model, inputs, examples, opset)
        except FAILURES as error:
            raise _failure(model, error, static_hint(inputs)) from error


def _failure(model: nn.Module, error: BaseException, static: str) -> InputError:
    """Make the error of the stage of torch.onnx.export that failed: tracing, or translation."""
    traced = any(base.__name__ == "ConversionError" for base in type(error).__mro__)
    if traced:
        message = "torch traced the model but cannot translate it to ONNX"
        hint = (
            "write the operation named here by other operations in forward, or try a newer --opset "
            "or a newer onnxscript"
        )
    elif _is_value_dependent(error):
        message = "torch cannot trace the model"
        hint = (
            "its forward branches on values, and a graph has one branch: give a --model whose "
            "forward does not"
        )
    else:
        message = "torch cannot trace the model"
        fixed = f"{static} fixes what the model cannot leave open, or" if static else ""
        hint = f"{fixed} give a --model whose forward torch.export accepts".strip()
    return InputError(
        f"{message}: {_reason(error)}", where=type(model).__name__, hint=hint, cause="input/capture"
    )


def _is_value_dependent(error: BaseException | None) -> bool:
    """Return whether the tracer met a branch on values, which no fixed size decides."""
    while error is not None:
        if "DataDependent" in type(error).__name__:
            return True
        error = error.__cause__
    return False


def _is_transformers_model(model: nn.Module) -> bool:
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.")
        for base in type(model).__mro__
    )


def _by_transformers(
    model: nn.Module, inputs: Sequence[InputSpec], examples: dict[str, Tensor], opset: int | None
) -> onnx_ir.Model:
    # By name: not every version of transformers that we allow has this module.
    exporter = import_module("transformers.exporters.exporter_onnx")
    config = exporter.OnnxConfig(
        dynamic_shapes=dimensions.dynamic_shapes(inputs), opset_version=opset, optimize=False
    )
    program: onnx_ir.Model = exporter.OnnxExporter().export_program(model, examples, config)[0]
    return program


def _by_torch(
    model: nn.Module, inputs: Sequence[InputSpec], examples: dict[str, Tensor], opset: int | None
) -> onnx_ir.Model:
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (),
            kwargs=examples,
            dynamic_shapes=dimensions.dynamic_shapes(inputs),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise InputError(
            "torch.onnx.export gave no program", where=type(model).__name__, cause="input/capture"
        )
    return program.model


@contextmanager
def _grouped_experts(model: nn.Module) -> Iterator[None]:
    """Let a mixture of experts run as one grouped product in the block.

    The loop over experts reads which experts are chosen, and a graph cannot branch on values.
    """
    own = getattr(model, "get_experts_implementation", lambda: None)()
    choose = getattr(model, "set_experts_implementation", None)
    if choose is None or own is None:
        yield
        return
    with suppress(ValueError):  # a model without experts
        choose("grouped_mm")
    try:
        yield
    finally:
        choose(own)


@contextmanager
def _flat_forward(model: nn.Module, inputs: Sequence[InputSpec]) -> Iterator[None]:
    """Give the model a forward whose parameters are the inputs and whose result is a flat dict.

    torch.export reads the signature. It would spread `**kwargs` or refuse optional parameters. The
    forward also states which sizes are equal: the graph then broadcasts less at run time.
    """
    import torch

    names = [spec.name for spec in inputs]
    call = bind_call(model, names)

    def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for (name, axis), parts in dimensions.equal_sizes(inputs):
            same = given[name].shape[axis] == sum(given[n].shape[place] for n, place in parts)
            # torch.export's documentation names this function, with its underscore.
            torch._check(same)  # type: ignore[no-untyped-call] # noqa: SLF001 - as torch names it
        return name_outputs(call(given), taken=names)

    signature = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    forward.__signature__ = signature  # type: ignore[attr-defined]
    own = model.__dict__.get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.forward = own


def _reason(error: BaseException | None) -> str:
    """Return the first lines of the innermost cause, which torch wraps in pages of advice."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else repr(error)
    return text[:REASON_LENGTH]
