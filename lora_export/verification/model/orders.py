"""Other orders of summation for a network that runs in float32 only, to measure its noise there.

A network that fixes float32 inside (`x.float()`) does not run in float64, whose distance would be
the noise. The same sums in other orders are as right as the network's own.
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
    """Inside, every operator computes in float64, and rounds its result once to float32.

    Operators that write into a tensor or share its memory are left as they are, and so are those
    without a kernel for float64.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operator's result, in the dtypes that it has without this mode."""
        named = dict(kwargs or {})
        plain = func(*args, **named)
        if _shares_memory(func):
            return plain
        try:
            exact = func(*_wider(args), **_wider(named))
        except (RuntimeError, TypeError):
            return plain
        return _rounded(exact, plain)


class Backwards(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, products of matrices and convolutions add up from the last element to the first."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operator's result, of operands that are turned round along the axis of the sum."""
        turn = _TURNS.get(func)
        return func(*(turn(*args) if turn else args), **(kwargs or {}))


def _product(*args: Any) -> tuple[Any, ...]:
    *added, left, right = args
    return (*added, left.flip(-1), right.flip(-2))


def _convolution(x: Any, weight: Any, *rest: Any) -> tuple[Any, ...]:
    *_, transposed, _, groups = rest
    if groups != 1:
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
    """Tensors and dtypes of float32 in float64, and complex ones alike."""
    tensors = tree_map_only(torch.Tensor, lambda t: t.to(_WIDER.get(t.dtype, t.dtype)), values)
    return tree_map_only(torch.dtype, lambda dtype: _WIDER.get(dtype, dtype), tensors)


def _rounded(exact: Any, plain: Any) -> Any:
    """`exact` in the dtypes of `plain`, which itself stands where it holds no float32."""
    if isinstance(plain, torch.Tensor):
        return exact.to(plain.dtype) if plain.dtype in _WIDER else plain
    if isinstance(plain, (list, tuple)):
        return type(plain)(_rounded(*pair) for pair in zip(exact, plain, strict=True))
    return plain
