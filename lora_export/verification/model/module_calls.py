"""Records the inputs and outputs of every module of a running torch model, call by call.

A bisection compares them between two models. The memory of the record is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    Arrays = tuple[NDArray[Any], ...]
    #: (call, its input tensors, its output tensors) -> None.
    See = Callable[["Call", list[Tensor], list[Tensor]], None]

BUDGET = 1 << 30
"""Bytes of inputs and outputs that a record holds at once."""


class Call(NamedTuple):
    """One call of a module."""

    module: str
    """The module's path in the model; "" is the root."""
    turn: int
    """How many calls of the same module ended before."""


@dataclass(slots=True)
class Record:
    """Inputs and outputs of calls, in the order in which the calls end: inner modules first."""

    start: int = 0
    """How many calls to skip before the first recorded one."""
    budget: int = BUDGET
    """The most bytes of the record; the first call is recorded whatever its size."""
    held: dict[Call, tuple[Arrays, Arrays]] = field(default_factory=dict)
    """The inputs and the outputs of each recorded call."""
    floors: dict[Call, tuple[list[float], list[float]]] = field(default_factory=dict)
    """The rounding noise of each recorded input and output, in its own unit."""
    ended: int = 0
    """How many calls there were so far, skipped ones among them."""
    size: int = 0
    """The bytes of the record so far."""
    full: bool = False
    """Whether a call was not recorded because of the budget."""

    @property
    def stop(self) -> int:
        """Return the number of the first call after the recorded ones."""
        return self.start + len(self.held)

    def __call__(self, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Record one call, if it is not skipped and fits the budget; see `watching`."""
        self.ended += 1
        if self.full or self.ended <= self.start:
            return
        arrays = _copies(inputs), _copies(outputs)
        size = sum(array.nbytes for side in arrays for array in side)
        if self.held and self.size + size > self.budget:
            self.full = True
            return
        self.held[call] = arrays
        self.floors[call] = [0.0] * len(arrays[0]), [0.0] * len(arrays[1])
        self.size += size


@contextmanager
def watching(model: nn.Module, see: See) -> Iterator[None]:
    """Call `see(call, inputs, outputs)` at the end of every module's calls, while it is entered.

    Hooks run in the order in which they were attached. An output has the change of a live branch
    that was attached before.

    Args:
        model: whose modules are watched, the root among them.
        see: takes the call and its floating-point tensors, which it must not keep: a later module
            may overwrite them.
    """
    turns: Counter[str] = Counter()
    names = {id(module): name for name, module in model.named_modules()}

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        name = names[id(module)]
        call = Call(name, turns[name])
        turns[name] += 1
        see(call, list(_tensors((args, kwargs))), list(_tensors(output)))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested containers, and nothing else."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _copies(tensors: Sequence[Tensor]) -> Arrays:
    """Copy the tensors, because a later module may overwrite its input."""
    return tuple(array_of(tensor).copy() for tensor in tensors)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a floating-point tensor as an array; bfloat16, which numpy lacks, as float32."""
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = wide.numpy(force=True)
    return array
