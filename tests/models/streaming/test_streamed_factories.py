"""A user's network that is read while it runs gives the bits of the same network in memory."""

import pytest
import torch
from network_code import HEAD

from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import FitError, UsageError
from lora_export.models import opening
from lora_export.models.factory import FactoryModel
from lora_export.models.opening import open_model
from lora_export.models.streaming import blocks, placing
from lora_export.models.streaming.streamed_weight import StreamedWeight

NETWORKS = {
    "plain": ("self.a = nn.Linear(6, 40); self.b = nn.Linear(40, 5)", "self.b(self.a(x))"),
    "loralib": (
        (
            "self.a = lora.Linear(6, 40, r=2); self.b = lora.MergedLinear(40, 9, r=2, "
            "enable_lora=[True, False, True], fan_in_fan_out=True)"
        ),
        "self.b(self.a(x)[:, None])",
    ),
    "reads its factors": (
        "self.a = lora.Linear(6, 40, r=2)",
        "self.a(x) + x @ self.a.lora_A.T @ self.a.lora_B.T",
    ),
    "a tie": (
        (
            "self.a = nn.Linear(6, 40); self.b = nn.Linear(40, 6, bias=False); "
            "self.c = nn.Linear(40, 6, bias=False); self.c.weight = self.b.weight"
        ),
        "self.b(self.a(x)) + self.c(self.a(x))",
    ),
    "buffers": (
        (
            "self.a = nn.Linear(6, 40); self.n = nn.BatchNorm1d(40); "
            "self.register_buffer('ramp', torch.arange(40.0), persistent=False)"
        ),
        "self.n(self.a(x)) * self.ramp",
    ),
    "a recurrent layer": ("self.a = nn.LSTM(6, 40)", "self.a(x)[0]"),
    "a convolution": ("self.a = nn.Conv1d(1, 40, 3)", "self.a(x[:, None])"),
    "a parameter": ("self.a = nn.Parameter(torch.empty(6, 40))", "x @ self.a"),
}


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    monkeypatch.setattr(placing, "HELD_ELEMENTS", 0)
    monkeypatch.setattr(blocks, "ELEMENTS", 16)


def factory(folder, init, forward="self.a(x)"):
    (folder / "net.py").write_text(
        HEAD.format(inputs="x=float32[batch,6]", init=init, forward=forward, build="Net()")
    )
    source = FactoryModel(f"{folder}/net.py:build", ())
    torch.manual_seed(2)
    model = source.blank(None, untied=())
    state = {
        name: torch.randn(tensor.shape).abs() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    model.load_state_dict(state)  # which makes tied values equal
    torch.save(model.state_dict(), folder / "base.pt")
    return source, read_checkpoint(folder / "base.pt")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_bits_are_those_of_the_network_in_memory(network, tmp_path):
    source, base = factory(tmp_path, *network)
    whole, streamed = (way(base, full={}, untied=()) for way in (source.load, source.stream))
    assert any(isinstance(weight, StreamedWeight) for weight in streamed.parameters())
    x = torch.randn(3, 6)
    assert torch.equal(whole(x), streamed(x))


def test_a_parameter_that_the_checkpoint_lacks_is_refused(tmp_path):
    source, base = factory(tmp_path, "self.a = nn.Linear(6, 40)")
    torch.save({"a.weight": torch.ones(40, 6)}, tmp_path / "base.pt")
    with pytest.raises(FitError, match=r"a\.bias: the checkpoint holds no value"):
        source.stream(read_checkpoint(tmp_path / "base.pt"), full={}, untied=())
    assert base


COPIES = "self.a = nn.Linear(6, 40); self.register_buffer('copy', self.a.weight * 2, {persistent})"


def test_a_network_with_a_copy_of_a_weight_is_loaded_whole(tmp_path, monkeypatch):
    source, base = factory(
        tmp_path, COPIES.format(persistent="persistent=False"), "x @ self.copy.T"
    )
    with pytest.raises(UsageError, match="copy"):
        source.stream(base, full={}, untied=())
    monkeypatch.setattr(opening, "is_large", lambda _: True)
    model = open_model(source, base, full={}, untied=())
    assert not any(isinstance(weight, StreamedWeight) for weight in model.parameters())
    monkeypatch.setattr(opening, "why_too_large", lambda *_, **__: "it needs 9 GB")
    with pytest.raises(UsageError, match="it needs 9 GB, and it cannot be read while it runs: "):
        open_model(source, base, full={}, untied=())


def test_a_network_with_another_name_of_a_weight_is_loaded_whole(tmp_path):
    init = "self.a = nn.Linear(6, 40); self.others = [self.a.weight]"
    source, base = factory(tmp_path, init, "x @ self.others[0].T")
    with pytest.raises(UsageError, match="keeps others where no weight can be placed"):
        source.stream(base, full={}, untied=())


def test_only_a_network_that_does_not_fit_is_read_while_it_runs(tmp_path, monkeypatch):
    source, base = factory(tmp_path, "self.a = nn.Linear(6, 40)")
    monkeypatch.setattr(opening, "is_large", lambda _: True)
    kinds = []
    for why in ("", "it needs 9 GB"):
        monkeypatch.setattr(opening, "why_too_large", lambda *_, why=why, **__: why)
        kinds.append(type(open_model(source, base, full={}, untied=()).a.weight))
    assert kinds == [torch.nn.Parameter, StreamedWeight]
