"""What every module of a running torch model takes and gives, one call after the other.

A bisection compares these between two models; what it holds of the first is bounded.
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
    See = Callable[["Call", list[Tensor], list[Tensor]], None]

BUDGET = 1 << 30
"""Bytes of inputs and outputs that are held at once."""


class Call(NamedTuple):
    """The `turn`-th call of a module, by its path in the model; the root's path is empty."""

    module: str
    turn: int


@dataclass(slots=True)
class Record:
    """Inputs and outputs of calls, in the order in which the calls end: inner modules first.

    start: calls before it are passed over. budget: bytes, after which the record is full; the
    first call is held whatever its size. ended: how many calls there were in all. floors: the
    rounding noise of what is held.
    """

    start: int = 0
    budget: int = BUDGET
    held: dict[Call, tuple[Arrays, Arrays]] = field(default_factory=dict)
    floors: dict[Call, tuple[list[float], list[float]]] = field(default_factory=dict)
    ended: int = 0
    size: int = 0
    full: bool = False

    @property
    def stop(self) -> int:
        """The first call after those that are held."""
        return self.start + len(self.held)

    def __call__(self, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Hold one call; see `watching`."""
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
    """Tell every module's calls, as they end: `see(call, tensors taken, tensors given)`.

    What live branches change is told as they have changed it, if they were attached before.
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
    """The floating-point tensors in nested containers; what else a module takes is passed over."""
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
    """Copies, as a later module may write over what it was given."""
    return tuple(array_of(tensor).copy() for tensor in tensors)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A floating-point tensor in a dtype that numpy knows."""
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = wide.numpy(force=True)
    return array
