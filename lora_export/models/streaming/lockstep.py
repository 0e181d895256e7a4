"""Runs several models at once, so that a weight which all of them need is read and cast once.

Each model runs in a thread of its own and stops where it needs the product with a streamed weight.
When all have stopped, the thread that started them reads the weight and makes all products.
"""

from __future__ import annotations

import sys
import threading
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F

from lora_export.checkpoint.output.interrupts import held_back
from lora_export.models.streaming.blocks import Features, bounds, memory_of
from lora_export.models.streaming.row_sources import ChangedRows, bytes_of
from lora_export.models.streaming.streamed_weight import StreamedWeight, products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lora_export.models.streaming.row_sources import RowSource

Result = TypeVar("Result")


@dataclass(slots=True)
class Wish:
    """A product that a stopped model waits for."""

    x: Tensor
    """The layer's input, (..., in)."""
    weight: StreamedWeight
    """(out, in)."""
    bias: Tensor | None
    """(out,); None without one."""
    product: Tensor | None = None
    """The layer's output, (..., out), once it is made."""
    error: BaseException | None = None
    """What was raised in place of a product."""

    @property
    def is_done(self) -> bool:
        """Return whether the model can go on."""
        return self.product is not None or self.error is not None

    @property
    def origin(self) -> RowSource:
        """Return the source whose rows are read, before any change of them."""
        rows = self.weight.rows
        return rows.origin if isinstance(rows, ChangedRows) else rows


class _Product:
    """The product of one model's input, made of the blocks of its weight.

    The inputs of several models are not joined: a matrix product may have other last bits for the
    same row in another place, and two runs of one model must be equal.
    """

    def __init__(self, wish: Wish) -> None:
        """Take what a model waits for."""
        self._wish = wish
        self._features = Features(len(wish.weight))

    def take(self, first: int, stop: int, block: Tensor) -> None:
        """Make the part of the product that rows `first` to `stop` of the weight give.

        block: the origin's rows in the weight's dtype; they stay as they are.
        """
        self._features.take(first, self._part(first, stop, block))
        self._wish.product = self._features.output

    def _part(self, first: int, stop: int, block: Tensor) -> Tensor:
        wish = self._wish
        rows, bias = wish.weight.rows, None if wish.bias is None else wish.bias[first:stop]
        if isinstance(rows, ChangedRows):
            product = rows.product(first, wish.x, block)
            if product is not None:
                return product if bias is None else product + bias
            changed = memory_of(block.dtype, tuple(block.shape), "changed").copy_(block)
            rows.apply(first, changed)
            block = changed
        return F.linear(wish.x, block, bias)


class Lockstep:
    """Threads that run models and wait for each other at every product with a streamed weight."""

    def __init__(self, read: Callable[[int], None] | None = None) -> None:
        """Start with no models.

        read: called with the bytes of each weight after it was read and multiplied.
        """
        self._read = read
        self._change = threading.Condition()
        self._waiting: list[Wish] = []
        self._running = 0
        self._ended: BaseException | None = None

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run every task in a thread of its own; return their results in order.

        Raises:
            what the first of the tasks that failed raised.
        """
        results: list[Any] = [None] * len(tasks)
        errors: list[BaseException | None] = [None] * len(tasks)
        grad = torch.is_grad_enabled()

        def work(place: int, task: Callable[[], Result]) -> None:
            try:
                with products(self._ask), torch.set_grad_enabled(grad):
                    results[place] = task()
            except BaseException as error:  # noqa: BLE001 - it is raised again by the caller
                errors[place] = error
            finally:
                with self._change:
                    self._running -= 1
                    self._change.notify_all()

        self._running = len(tasks)
        threads = [
            threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(tasks)
        ]
        # Each call of a model sends stdout to stderr and back. Threads that overlap would leave it
        # there, unless it is there already.
        with redirect_stdout(sys.stderr):
            try:
                with held_back():  # a thread that has not started could not be joined
                    for thread in threads:
                        thread.start()
                self._serve()
            except BaseException as error:
                self._end(error)
                raise
            finally:
                for thread in threads:
                    thread.join()
        for failure in filter(None, errors):
            raise failure
        return results

    def _end(self, error: BaseException) -> None:
        """Raise an error in every model, now or at its next product, so that no thread is left."""
        with self._change:
            self._ended = error
            for wish in self._waiting:
                wish.error = wish.error or error
            self._change.notify_all()

    def _ask(self, x: Tensor, weight: StreamedWeight, bias: Tensor | None) -> Tensor:
        """Wait for a product; see streamed_weight.products."""
        wish = Wish(x, weight, bias)
        with self._change:
            wish.error = self._ended
            self._waiting.append(wish)
            self._change.notify_all()
            self._change.wait_for(lambda: wish.is_done)
        if wish.error is not None:
            raise wish.error
        return wish.product  # type: ignore[return-value]

    def _serve(self) -> None:
        """Make products until every task has ended."""
        while True:
            with self._change:
                self._change.wait_for(lambda: len(self._waiting) == self._running)
                if not self._running:
                    return
                # Those that are behind go first: the others wait for them, and all meet again.
                place = min(wish.weight.place for wish in self._waiting)
                chosen = [wish for wish in self._waiting if wish.weight.place == place]
            for wishes in _by_origin(chosen):
                _make(wishes)
                if self._read:
                    self._read(bytes_of(wishes[0].origin))
            with self._change:
                self._waiting = [wish for wish in self._waiting if not wish.is_done]
                self._change.notify_all()


def _by_origin(wishes: Sequence[Wish]) -> list[list[Wish]]:
    groups: dict[RowSource, list[Wish]] = {}
    for wish in wishes:
        groups.setdefault(wish.origin, []).append(wish)
    return list(groups.values())


def _make(wishes: Sequence[Wish]) -> None:
    """Make the products of several models with one weight; each block of it is read once."""
    products = [(wish, _Product(wish)) for wish in wishes]
    try:
        for first, stop, blocks in _blocks(wishes[0].origin, {w.weight.dtype for w in wishes}):
            for wish, product in products:
                _take(wish, product, first, stop, blocks[wish.weight.dtype])
    except BaseException as error:  # noqa: BLE001 - what cannot be read is each model's error
        for wish in wishes:
            wish.error = wish.error or error


def _take(wish: Wish, product: _Product, first: int, stop: int, block: Tensor) -> None:
    """Make a part of a product, unless one before has failed: its error is the model's own."""
    if wish.error is None:
        try:
            product.take(first, stop, block)
        except Exception as error:  # noqa: BLE001 - the model raises it, as it would alone
            wish.error = error


def _blocks(
    rows: RowSource, dtypes: set[torch.dtype]
) -> Iterator[tuple[int, int, dict[torch.dtype, Tensor]]]:
    """Yield (first row, stop, the rows in each dtype); the next block overwrites the one before."""
    least, *wider = sorted(dtypes, key=lambda dtype: dtype.itemsize)
    is_exact = torch.promote_types(rows.dtype, least) == least
    for first, stop in bounds(rows.shape):
        shape = (stop - first, *rows.shape[1:])
        blocks = {dtype: memory_of(dtype, shape, "block") for dtype in dtypes}
        rows.fill(first, blocks[least])
        for dtype in wider:
            if is_exact:  # the stored values pass through the narrower dtype unchanged
                blocks[dtype].copy_(blocks[least])
            else:
                rows.fill(first, blocks[dtype])
        yield first, stop, blocks
