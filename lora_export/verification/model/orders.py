"""Runs a network in float32 with other orders of summation, to measure its rounding noise.

The noise is else the distance to a run in float64. A network that fixes float32 inside
(`x.float()`) does not run in float64. The same sums in other orders are as right as its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class EachInFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which every operator computes in float64 and rounds its result once to float32.

    It does not change operators that write into a tensor or share its memory, nor those without a
    kernel for float64.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the operator's result, in the dtypes that it has without this mode."""
        named = dict(kwargs or {})
        plain = func(*args, **named)  # first: an operator that writes must run once only
        if _shares_memory(func):
            return plain
        try:
            exact = func(*_wider(args), **_wider(named))
        except (RuntimeError, TypeError):
            return plain
        return _rounded(exact, plain)


class Backwards(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which matrix products and convolutions sum from the last element to the first."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the operator's result for operands that are reversed along the axis of the sum."""
        turn = _TURNS.get(func)
        return func(*(turn(*args) if turn else args), **(kwargs or {}))


def _product(*args: Any) -> tuple[Any, ...]:
    *added, left, right = args
    return (*added, left.flip(-1), right.flip(-2))


def _convolution(x: Any, weight: Any, *rest: Any) -> tuple[Any, ...]:
    *_, transposed, _, groups = rest
    if groups != 1:  # the input's channels are summed in groups, so a flip would mix them
        return (x, weight, *rest)
    return (x.flip(1), weight.flip(0 if transposed else 1), *rest)


_TURNS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.addmm.default: _product,
    torch.ops.aten.baddbmm.default: _product,
    torch.ops.aten.convolution.default: _convolution,
}


def _shares_memory(func: Any) -> bool:
    schema = func._schema  # noqa: SLF001 - torch has no public name for it
    return schema.is_mutable or any(one.alias_info is not None for one in schema.returns)


def _wider(values: Any) -> Any:
    """Return nested values with float32 as float64 and complex64 as complex128."""
    tensors = tree_map_only(torch.Tensor, lambda t: t.to(_WIDER.get(t.dtype, t.dtype)), values)
    return tree_map_only(torch.dtype, lambda dtype: _WIDER.get(dtype, dtype), tensors)


def _rounded(exact: Any, plain: Any) -> Any:
    """Return `exact` in the dtypes of `plain`; parts that are not float32 come from `plain`."""
    if isinstance(plain, torch.Tensor):
        return exact.to(plain.dtype) if plain.dtype in _WIDER else plain
    if isinstance(plain, (list, tuple)):
        return type(plain)(_rounded(*pair) for pair in zip(exact, plain, strict=True))
    return plain
