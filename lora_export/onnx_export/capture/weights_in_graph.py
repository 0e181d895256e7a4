"""The initializers of a traced graph that hold the module's weights, and how they hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import InputError
from lora_export.onnx_export.file.bindings import Binding, Bindings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir
    from torch import Tensor, nn

    from lora_export.onnx_export.file.bindings import Kind

# Metadata of an initializer under another name than its parameter's, or with other axes.
SOURCE_KEY = "lora_export.source"
PERM_KEY = "lora_export.perm"


def find(model: nn.Module, traced: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    """Find the initializers that hold weights, by the initializer's name.

    Weights are all parameters, and the buffers of the state dict. Other buffers (position indices,
    rotary frequencies) follow from the configuration: they are constants of the graph.

    Raises:
        InputError: the graph holds a weight as an anonymous constant, or two weights that are
            views of one memory.
    """
    weights = {name: tensor for name, tensor, _ in _tensors(model)}
    _refuse_baked(weights, traced)
    return {name: value for name, value in traced.graph.initializers.items() if name in weights}


def bind(model: nn.Module, traced: onnx_ir.Model) -> Bindings:
    """Bind every weight to its initializer, after the passes.

    Names of one tied tensor share an initializer. Weights without an initializer are unused.
    """
    holders = _holders(traced)
    shared: dict[int, Binding] = {
        id(tensor): Binding(*holders[name], kind=kind)
        for name, tensor, kind in _tensors(model)
        if name in holders
    }
    bound = {
        name: Binding(shared[id(tensor)].initializer, shared[id(tensor)].perm, kind)
        for name, tensor, kind in _tensors(model)
        if id(tensor) in shared
    }
    used = {binding.initializer for binding in bound.values()}
    return Bindings(
        bound,
        tuple(name for name, _, _ in _tensors(model) if name not in bound),
        tuple(name for name in traced.graph.initializers if name not in used),
    )


def _holders(traced: onnx_ir.Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Map parameter names to (initializer name, permutation)."""
    holders = {}
    for name, value in traced.graph.initializers.items():
        perm = value.metadata_props.get(PERM_KEY, "")
        source = value.metadata_props.get(SOURCE_KEY, name)
        holders[source] = (name, tuple(int(axis) for axis in perm.split(",") if axis))
    return holders


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, Kind]]:
    """List all weights as (name, tensor, kind), a tied one once for each of its names."""
    state = model.state_dict(keep_vars=True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter"
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in state:
            yield name, buffer, "buffer"


def _refuse_baked(weights: dict[str, Tensor], traced: onnx_ir.Model) -> None:
    """Refuse constants that are weights under no name: they would keep the base's values.

    Raises:
        InputError: the first such constant, by the name of its weight where it is found.
    """
    owners = {_memory(tensor): name for name, tensor in weights.items() if tensor.numel()}
    for name, value in traced.graph.initializers.items():
        tensor = _torch_tensor(value.const_value)
        if name in weights or tensor is None or not tensor.numel():
            continue
        memory = _memory(tensor)
        # Torch traces on tensors without memory. A constant without memory was made from a weight.
        if memory is None or memory in owners:
            raise InputError(
                "is used by the model's code as a plain tensor, which new weights cannot reach",
                where=owners.get(memory, name),
                hint="use the parameter itself in forward, not its .data",
                cause="input/capture",
            )


def _memory(tensor: Tensor) -> int | None:
    """Return the address of a tensor's memory; None where it has no memory."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def _torch_tensor(constant: object) -> Tensor | None:
    """Return the torch tensor behind a constant of the traced graph; None where it has none."""
    import torch

    raw = getattr(constant, "raw", None)
    return raw if isinstance(raw, torch.Tensor) else None


def rename(value: onnx_ir.Value, name: str) -> None:
    """Rename an initializer, and note the parameter it holds in its metadata, in place."""
    value.metadata_props.setdefault(SOURCE_KEY, str(value.name))
    value.name = name


def transposed(value: onnx_ir.Value, perm: tuple[int, ...], name: str) -> onnx_ir.Value:
    """Make an initializer for `value`'s tensor with permuted axes, without data.

    Its metadata notes the parameter and the permutation.

    Raises:
        InputError: the traced graph has no value for it.
    """
    import onnx_ir

    constant = value.const_value
    if constant is None:
        raise InputError(
            "has no value in the traced graph", where=str(value.name), cause="input/capture"
        )
    shape = tuple(constant.shape.numpy()[axis] for axis in perm)
    new = onnx_ir.Value(name=name, type=value.type, shape=onnx_ir.Shape(shape),
                        const_value=_hollow(name, constant.dtype, shape))  # fmt: skip
    new.metadata_props[SOURCE_KEY] = str(value.name)
    new.metadata_props[PERM_KEY] = ",".join(map(str, perm))
    return new


def empty(traced: onnx_ir.Model, bindings: Bindings) -> None:
    """Remove the data of every bound initializer, in place; dtype and shape stay."""
    bound = {binding.initializer for binding in bindings.parameters.values()}
    for name, value in traced.graph.initializers.items():
        constant = value.const_value
        if name in bound and constant is not None:
            value.const_value = _hollow(name, constant.dtype, tuple(constant.shape.numpy()))


def _hollow(
    name: str, dtype: onnx_ir.DataType, shape: tuple[int, ...]
) -> onnx_ir.TensorProtoTensor:
    """Make a tensor that has dtype and shape, and no data."""
    import onnx
    import onnx_ir

    return onnx_ir.serde.TensorProtoTensor(
        onnx.TensorProto(name=name, data_type=int(dtype), dims=shape)
    )
