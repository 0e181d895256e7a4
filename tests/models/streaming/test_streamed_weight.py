"""Operations on a weight that lies in a file, against the same on the tensor."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.streaming import blocks, streamed_weight
from lora_export.models.streaming.row_sources import (
    ChangedRows,
    FileRows,
    JoinedRows,
    StackedRows,
)
from lora_export.models.streaming.streamed_weight import StreamedWeight

DRAW = torch.Generator().manual_seed(3)
X = torch.randn(3, 5, 24, generator=DRAW)
IDS = torch.tensor([[3, 199, 3], [0, 64, 128]])
BIAS = torch.randn(200, generator=DRAW)
STACK_X = torch.randn(5, 4, 24, generator=DRAW)

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 100)
    monkeypatch.setattr(streamed_weight, "WHOLE_ELEMENTS", 1 << 20)


@pytest.fixture
def stored(tmp_path):
    """Return a function that stores a tensor and gives its rows, and the tensor in float32."""

    def store(shape, dtype=torch.float32):
        tensor = torch.randn(shape, generator=DRAW).to(dtype)
        save_file({"w": tensor, "other": tensor + 1}, tmp_path / "w.safetensors")
        ref = read_checkpoint(tmp_path / "w.safetensors").tensors()["w"]
        return FileRows(ref), tensor.float()

    return store


MATRIX = {
    "a product": lambda w: F.linear(X, w),
    "a product and a bias": lambda w: F.linear(X, w, BIAS),
    "a turned product": lambda w: X @ w.T,
    "rows that are looked up": lambda w: F.embedding(IDS, w),
    "a table with a bound on its rows": lambda w: F.embedding(IDS, w, max_norm=1.0),
    "one row": lambda w: w[7],
    "the last row": lambda w: w[-1],
    "rows by number": lambda w: w[IDS],
    "a range of rows": lambda w: w[11:190],
    "columns": lambda w: w[:, 3:9],
    "all rows": lambda w: w[:],
    "lengths of rows": lambda w: torch.linalg.vector_norm(w, dim=1),
    "a sum with a matrix": lambda w: w + 0.5,
    "another dtype": lambda w: F.linear(X.double(), w.double()).float(),
    "a copy": lambda w: F.linear(X, w.detach().clone()),
    "a layer": lambda w: layer_of(w)(X),
}


def layer_of(weight):
    layer = nn.Linear(24, 200, bias=False)
    layer._parameters["weight"] = weight
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", MATRIX.values(), ids=MATRIX)
def test_a_matrix(operation, dtype, stored):
    rows, tensor = stored((200, 24), dtype)
    with torch.no_grad():
        held = nn.Parameter(tensor.clone(), requires_grad=False)
        found = operation(StreamedWeight(rows, torch.float32))
        assert torch.equal(read(found), operation(held))


def read(value):
    return value.read() if isinstance(value, StreamedWeight) else value


STACK = {
    "an entry's product": lambda w: F.linear(STACK_X[2], w[2]),
    "an entry by a tensor": lambda w: F.linear(STACK_X[2], w[torch.tensor(2)]),
    "an entry's turned product": lambda w: STACK_X[2] @ w[2].mT,
    "all products": lambda w: torch.bmm(STACK_X, w.transpose(1, 2)),
    "entries by number": lambda w: w[torch.tensor([4, 0])],
    "a sum": lambda w: w * 2,
}


@pytest.mark.parametrize("way", ["one tensor", "one by one", "in two parts"])
@pytest.mark.parametrize("operation", STACK.values(), ids=STACK)
def test_a_stack_of_experts(operation, way, stored):
    rows, tensor = stored((5, 70, 24))
    if way == "one by one":
        rows = StackedRows(tuple(rows.part(place) for place in range(5)))
    elif way == "in two parts":
        halves = [Half(rows.part(place)) for place in range(5)]
        rows = StackedRows(tuple(JoinedRows((half.upper, half.lower)) for half in halves))
    weight = StreamedWeight(rows, torch.float32)
    assert weight.shape == (5, 70, 24)
    assert torch.equal(operation(weight), operation(tensor))


class Half:
    """The upper and the lower rows of a matrix, as two sources."""

    def __init__(self, rows):
        self.upper, self.lower = Piece(rows, 0, 31), Piece(rows, 31, 70)


class Piece:
    def __init__(self, rows, first, stop):
        self.rows, self.first, self.shape = rows, first, (stop - first, *rows.shape[1:])
        self.dtype = rows.dtype

    def fill(self, first, into):
        self.rows.fill(self.first + first, into)


def test_products_that_sum_over_blocks(stored, monkeypatch):
    monkeypatch.setattr(streamed_weight, "WHOLE_ELEMENTS", 0)
    rows, tensor = stored((200, 24))
    x = torch.randn(7, 200, generator=DRAW)
    found = torch.addmm(BIAS[:24], x, StreamedWeight(rows, torch.float32))
    torch.testing.assert_close(found, torch.addmm(BIAS[:24], x, tensor), atol=1e-4, rtol=0)


CHANGES = {
    "add_": lambda w: w.add_(1),
    "copy_": lambda w: w.copy_(torch.zeros(200, 24)),
    "data": lambda w: w.data.mul_(2),
    "a row": lambda w: w.__setitem__(3, 1.0),
    "init": nn.init.zeros_,
    "renormalised rows": lambda w: torch.embedding_renorm_(w, IDS, 1.0, 2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_refused(change, stored):
    rows, _ = stored((200, 24))
    with pytest.raises(RuntimeError, match="would change a weight that is read from its file"):
        change(StreamedWeight(rows, torch.float32))


def test_rows_that_the_table_lacks(stored):
    rows, _ = stored((200, 24))
    with pytest.raises(IndexError, match="200"):
        F.embedding(torch.tensor([200]), StreamedWeight(rows, torch.float32))


@pytest.mark.parametrize("ids", [[[200]], [[-201]]])
def test_rows_by_number_that_the_table_lacks(ids, stored):
    rows, tensor = stored((200, 24))
    with pytest.raises(IndexError):
        tensor[torch.tensor(ids)]
    with pytest.raises(IndexError):
        StreamedWeight(rows, torch.float32)[torch.tensor(ids)]


def test_a_wider_dtype_after_a_narrower_one(stored):
    rows, tensor = stored((200, 24))
    narrow = StreamedWeight(rows, torch.float16)
    assert torch.equal(read(narrow.float()), tensor.half().float())
    assert torch.equal(read(narrow.to(torch.bfloat16)), tensor.half().bfloat16())


@pytest.mark.parametrize("size", [slice(None), 3])
def test_a_product_is_added_to_each_expert(size, stored):
    rows, tensor = stored((5, 70, 24))
    left, right = torch.randn(5, 70, 4, generator=DRAW), torch.randn(5, 4, 24, generator=DRAW)
    found = torch.baddbmm(StreamedWeight(rows, torch.float32), left, right, alpha=0.5)
    assert isinstance(found, StreamedWeight)
    wanted = torch.baddbmm(tensor, left, right, alpha=0.5)
    torch.testing.assert_close(read(found[size]), wanted[size], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(200, 24), (5, 70, 24)])
def test_changed_rows_know_their_places(shape, stored):
    rows, tensor = stored(shape)
    added = torch.randn(tensor.numel() // 24, 24, generator=DRAW)

    def change(first, into):
        into.add_(added[first : first + len(into)])

    weight = StreamedWeight(ChangedRows(rows, change, 24), torch.float32)
    expected = tensor + added.view(shape)
    assert torch.equal(weight.read(), expected)
    if len(shape) == 3:
        assert torch.equal(F.linear(STACK_X[1], weight[1]), F.linear(STACK_X[1], expected[1]))
    else:
        assert torch.equal(F.linear(X, weight), F.linear(X, expected))
