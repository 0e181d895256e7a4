"""A factory's network beside checkpoint and adapter: names, modules and values must agree."""

import pytest
import torch
from network_code import HEAD
from safetensors.torch import load_file

from lora_export.api import merge
from lora_export.errors import FitError, UsageError

LINEAR = "self.fc = nn.Linear(5, 6)"
OWN = "self.fc = lora.Linear(5, 6, r=2, lora_alpha=16)"
TWO = f"{OWN}; self.v = lora.Linear(6, 6, r=2, lora_alpha=16)"
TABLE = "self.e = nn.Embedding(11, 4, max_norm=1.0)"
SHARED = "self.a = lora.Linear(5, 5, r=2, lora_alpha=16); self.b = self.a"
TIED = """\
self.e = nn.Embedding(11, 8); self.mid = nn.Linear(8, 8); self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.e.weight"""
TURNED = """\
class Conv1D(nn.Module):
    def __init__(self):
        super().__init__()
        self.nf = 6
        self.{name} = nn.Parameter(torch.zeros(5, 6))
    def forward(self, x):
        return x @ self.{name}
"""


def net(init, forward="self.fc(x)", build="Net()", inputs="x=float32[batch,5]", before=""):
    code = HEAD.format(init=init, forward=forward, build=build, inputs=inputs)
    return code.replace("class Net", f"{before}class Net")


def drawn(**shapes):
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


BASE = drawn(fc__weight=(6, 5), fc__bias=(6,))
FACTORS = drawn(fc__lora_A=(2, 5), fc__lora_B=(6, 2))
ONE = drawn(a__weight=(5, 5), a__bias=(5,))
ONE_FACTORS = drawn(a__lora_A=(2, 5), a__lora_B=(5, 2))


def renamed(tensors, old, new):
    return {new + name.removeprefix(old): tensor for name, tensor in tensors.items()}


def merged(folder, code, base, adapter, **options):
    (folder / "net.py").write_text(code)
    torch.save(base, folder / "base.pt")
    torch.save(adapter, folder / "lora.pt")
    out = folder / "out.safetensors"
    model = f"{folder}/net.py:build"
    report = merge(folder / "base.pt", [folder / "lora.pt"], out, model=model, **options)
    return report, load_file(out)


def check_names(report):
    return [check.name for check in report.checks]


@pytest.mark.parametrize("on_base", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("build", ["Net()", "nn.DataParallel(Net())", "torch.compile(Net())"])
def test_wrappers_on_any_side(on_base, build, tmp_path):
    code = net(OWN, build=build)
    if "compile" in build:
        code = code.replace("torch.compile(", "torch.compile(backend='eager', model=")
    report, found = merged(tmp_path, code, renamed(BASE, "", on_base), FACTORS)
    assert "merged = your own modules" in check_names(report)
    update = (FACTORS["fc.lora_B"] @ FACTORS["fc.lora_A"]) * 8
    assert torch.equal(found[f"{on_base}fc.weight"], BASE["fc.weight"] + update)


REFUSED = {
    "alpha contradicts": (net(OWN), BASE, FACTORS, {"alpha": 4.0}, UsageError, "alpha is 16"),
    "max_norm": (
        net(TABLE, "self.e(x)", inputs="x=int64[batch,n]<11"),
        drawn(e__weight=(11, 4)), drawn(e__lora_A=(2, 11), e__lora_B=(4, 2)), {"alpha": 4.0},
        FitError, "max_norm",
    ),
    "a module was forgotten": (
        net(TWO, "self.v(self.fc(x))"), BASE | drawn(v__weight=(6, 6), v__bias=(6,)), FACTORS, {},
        FitError, "v: has factors in .* and none in the adapter",
    ),
    "a parameter of two values": (
        net(TIED, "self.head(self.mid(self.e(x)))", inputs="x=int64[batch,n]<11"),
        drawn(e__weight=(11, 8), head__weight=(11, 8), mid__weight=(8, 8), mid__bias=(8,)),
        drawn(mid__lora_A=(2, 8), mid__lora_B=(8, 2)), {"alpha": 4.0},
        FitError, "head.weight: differs from e.weight.*\n.*untie e.weight and head.weight",
    ),
    "a module of two values": (
        net(SHARED, "self.b(torch.tanh(self.a(x)))"), ONE,
        ONE_FACTORS | drawn(b__lora_A=(2, 5), b__lora_B=(5, 2), c=()), {},
        FitError, r"a and (module\.)?b are one module",
    ),
}  # fmt: skip


@pytest.mark.parametrize("on_base", ["", "module."])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, verify, on_base, tmp_path):
    code, base, adapter, options, error, words = REFUSED[name]
    adapter = {name: tensor for name, tensor in adapter.items() if name != "c"}
    if not verify and "differs" in words:
        pytest.skip("is only seen when the model is loaded")
    with pytest.raises(error, match=words):
        merged(tmp_path, code, renamed(base, "", on_base), adapter, verify=verify, **options)


def test_a_module_without_factors_may_be_let_go(tmp_path):
    base = BASE | drawn(v__weight=(6, 6), v__bias=(6,))
    code = net(TWO, "self.v(self.fc(x))")
    report, _ = merged(tmp_path, code, base, FACTORS, allow_unmatched=["v.lora_*"])
    assert "merged = your own modules" in check_names(report)


@pytest.mark.parametrize("in_base", ["a", "b", "ab"])
@pytest.mark.parametrize("in_adapter", ["a", "b", "ab"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_module_of_two_names(in_base, in_adapter, bias, tmp_path):
    factors = ONE_FACTORS | ({"a.bias": ONE["a.bias"] + 1} if bias else {})
    base, adapter = {}, {}
    for name in in_base:
        base |= renamed(ONE, "a", name)
    for name in in_adapter:
        adapter |= renamed(factors, "a", name)
    code = net(SHARED, "self.b(torch.tanh(self.a(x)))")
    report, found = merged(tmp_path, code, base, adapter)
    assert "merged = your own modules" in check_names(report)
    assert found.keys() == base.keys()
    update = (ONE_FACTORS["a.lora_B"] @ ONE_FACTORS["a.lora_A"]) * 8
    for name in in_base:
        assert torch.equal(found[f"{name}.weight"], ONE["a.weight"] + update)
        assert torch.equal(found[f"{name}.bias"], ONE["a.bias"] + bias)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (net("self.fc = Conv1D()", before=TURNED.format(name="weight")), "linear"),
        (net("self.fc = Other()", before=TURNED.format(name="w").replace("Conv1D", "Other")), None),
        (net(OWN.replace("16", "16, bias=False, fan_in_fan_out=True")), "linear"),
    ],
)
def test_a_linear_layer_stored_in_out_is_no_embedding(code, kind, tmp_path):
    base = {"fc.w" if "self.w " in code else "fc.weight": BASE["fc.weight"].T.contiguous()}
    report, found = merged(tmp_path, code, base, FACTORS, alpha=16.0)
    [delta] = [delta for step in report.plan.steps() for delta in step.deltas]
    assert delta.kind == kind or kind is None
    update = (FACTORS["fc.lora_B"] @ FACTORS["fc.lora_A"]).T * 8
    assert torch.equal(next(iter(found.values())), next(iter(base.values())) + update)


def test_an_update_that_changes_nothing_may_be_accepted(tmp_path):
    zero = {**FACTORS, "fc.lora_B": torch.zeros(6, 2)}
    report, found = merged(tmp_path, net(LINEAR), BASE, zero, alpha=4.0, allow_noop=True)
    assert "merged = unmerged (torch)" in check_names(report)
    assert torch.equal(found["fc.weight"], BASE["fc.weight"])


def test_a_buffer_of_another_integer_dtype(tmp_path):
    code = net(f"{LINEAR}; self.register_buffer('pos', torch.arange(3))")
    full = {"pos": torch.tensor([3, 4, 5], dtype=torch.int32)}
    _, found = merged(tmp_path, code, BASE | {"pos": torch.arange(3)}, FACTORS | full, alpha=4.0)
    assert torch.equal(found["pos"], torch.tensor([3, 4, 5]))
