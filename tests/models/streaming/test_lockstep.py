"""Models that run at once give what each gives alone, and read each weight once."""

import sys
import threading
from collections import Counter
from contextlib import redirect_stdout

import pytest
import torch
import torch.nn.functional as F

from lora_export.models.streaming import blocks
from lora_export.models.streaming.lockstep import Lockstep
from lora_export.models.streaming.row_sources import ChangedRows
from lora_export.models.streaming.streamed_weight import StreamedWeight

DRAW = torch.Generator().manual_seed(4)


class Counted:
    """Rows in memory that count how often each was read."""

    dtype = torch.float32

    def __init__(self, tensor):
        self.tensor, self.shape, self.read = tensor, tuple(tensor.shape), Counter()

    def fill(self, first, into):
        self.read.update(range(first, first + len(into)))
        into.copy_(self.tensor[first : first + len(into)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 100)


@pytest.fixture
def layers():
    return [Counted(torch.randn(90, 90, generator=DRAW)) for _ in range(3)]


def network(layers, x, dtype=torch.float32, times=1, change=None):
    """Run the layers one after the other, the second one `times`."""

    def run():
        y = x.to(dtype)
        for place, rows in enumerate(layers):
            read = ChangedRows(rows, change, 90) if change else rows
            weight = StreamedWeight(read, dtype, place)
            for _ in range(times if place == 1 else 1):
                y = torch.tanh(F.linear(y, weight))
        return y

    return run


def test_each_gives_what_it_gives_alone(layers):
    x = torch.randn(4, 90, generator=DRAW)
    runs = [
        network(layers, x),
        network(layers, x[:1]),
        network(layers, x, torch.float64),
        network(layers, x, change=lambda _first, rows: rows.mul_(1.01)),
        network(layers, x, times=3),
    ]
    alone = [run() for run in runs]
    for rows in layers:
        rows.read.clear()
    together = Lockstep().run(runs)
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    # The one that calls the second layer three times is waited for.
    assert [set(rows.read.values()) for rows in layers] == [{1}, {3}, {1}]


def test_an_error_reaches_the_caller_and_the_others_end(layers):
    ended = []

    def fails():
        network(layers[:1], torch.zeros(1, 90))()
        raise ValueError("a layer's own error")

    def goes_on():
        ended.append(network(layers, torch.ones(1, 90))())

    with pytest.raises(ValueError, match="own error"):
        Lockstep().run([fails, goes_on])
    assert len(ended) == 1


def test_a_weight_that_cannot_be_read_is_every_readers_error(layers):
    class Cut(Counted):
        def fill(self, first, into):
            raise OSError("cut short")

    cut = Cut(layers[1].tensor)
    runs = [network([layers[0], cut], torch.ones(1, 90))] * 2
    with pytest.raises(OSError, match="cut short"):
        Lockstep().run(runs)


def test_a_shape_that_does_not_fit_is_that_models_error(layers):
    results = []
    right = network(layers, torch.ones(1, 90))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Lockstep().run([network(layers, torch.ones(1, 91)), lambda: results.append(right())])
    assert torch.equal(results[0], right())


def test_gradients_are_as_off_as_in_the_calling_thread():
    with torch.no_grad():
        assert Lockstep().run([torch.is_grad_enabled]) == [False]


def test_equal_inputs_give_equal_bits_in_several_threads_of_torch():
    """A product of joined inputs gives the same row other last bits in another place."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = Counted(torch.randn(512, 128, generator=DRAW))
        x = torch.randn(3, 128, generator=DRAW)
        found = Lockstep().run([network([rows], part) for part in (x, x, x[:1], x)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[3])


def test_an_interrupt_leaves_no_thread(layers):
    def interrupted(_):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        Lockstep(interrupted).run([network(layers, torch.ones(1, 90))] * 3)
    assert threading.active_count() == before


def test_stdout_is_what_it_was(layers):
    """Each call of a model redirects it for a while, and the calls overlap."""
    first, last = threading.Event(), threading.Event()

    def enters_first():
        with redirect_stdout(sys.stderr):
            first.set()
            last.wait()

    def leaves_last():
        first.wait()
        with redirect_stdout(sys.stderr):
            last.set()
            network(layers, torch.ones(1, 90))()

    before = sys.stdout
    Lockstep().run([enters_first, leaves_last])
    assert sys.stdout is before


def test_nothing_to_run():
    assert Lockstep().run([]) == []
