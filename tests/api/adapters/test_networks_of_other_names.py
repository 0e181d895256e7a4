"""--model, where the base lacks the network's prefix, or has tensors that the network lacks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.errors import FitError, UsageError
from lora_export.report.manifest import FORMAT

PROVEN = "merged = unmerged (torch)"
OWN = "merged = your own modules"
IMPORTS = "import loralib as lora\nimport torch\nfrom torch import nn\n"
ENCODER = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            lora.Linear(6, 8, r=2, lora_alpha=6), nn.GELU(), nn.Linear(8, 6))
        self.norm = nn.LayerNorm(6)
    def forward(self, x):
        return self.norm(self.layers(x))
"""
WRAPPED = f"""{IMPORTS}{ENCODER}
INPUTS = "x=float32[batch,6]"
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({{"encoder": Encoder()}})
        self.head = nn.Linear(6, 3)
    def forward(self, x):
        return self.head(self.model["encoder"](x))
def build():
    return Tagger()
"""
# The names of microsoft/LoRA's examples/NLG: the base says h.0, the network transformer.h.0.
GPT = f"""{IMPORTS}
INPUTS = "ids=int64[batch,sequence]<11"
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = lora.MergedLinear(8, 24, r=2, lora_alpha=6, enable_lora=[True, False, True],
                                        fan_in_fan_out=True)
        self.c_proj = nn.Linear(8, 8)
    def forward(self, x):
        # MergedLinear of loralib 0.1.2 wants three dimensions
        q, k, v = self.c_attn(x).chunk(3, -1)
        return x + self.c_proj(torch.tanh(q) * k + v)
class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.h = nn.ModuleList([Block(), Block()])
    def forward(self, ids):
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return x
class LMModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = Transformer()
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
    def forward(self, ids):
        return self.lm_head(self.transformer(ids))
def build():
    return LMModel()
"""


def network(code, seed=0):
    space = {}
    exec(code, space)
    torch.manual_seed(seed)
    found = space["build"]()
    for name, parameter in found.named_parameters():
        if "lora_" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    return found


def state(model, *, factors=False):
    return {k: v.clone() for k, v in model.state_dict().items() if ("lora_" in k) is factors}


def under(prefix, tensors):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def evaluated(model):
    model.train()
    model.eval()
    return state(model)


def files(folder, code, base, adapter):
    (folder / "net.py").write_text(code)
    torch.save(base, folder / "base.pt")
    torch.save(adapter, folder / "lora.pt")
    return folder / "base.pt", [folder / "lora.pt"], folder / "out.safetensors"


def merged(folder, code, base, adapter, **options):
    paths = files(folder, code, base, adapter)
    report = merge(*paths, model=f"{folder}/net.py:build", **options)
    return report, {} if options.get("dry_run") else load_file(paths[2])


def names(report):
    return [check.name for check in report.checks]


def tagger():
    model = network(WRAPPED)
    whole = state(model)
    head = {name: tensor for name, tensor in whole.items() if name.startswith("head.")}
    return model, under("model.encoder.", whole), {**state(model, factors=True), **head}


def test_an_encoder_without_the_prefix_of_its_network(tmp_path):
    model, base, adapter = tagger()
    report, found = merged(tmp_path, WRAPPED, base, adapter)
    assert {PROVEN, OWN} <= set(names(report))
    wanted = evaluated(model)
    assert found.keys() == {*base, "head.weight", "head.bias"}
    for name in base:
        assert torch.equal(found[name], wanted[f"model.encoder.{name}"]), name
    assert torch.equal(found["head.weight"], wanted["head.weight"])
    told = "are the base's after prefix model.encoder. -> (none)"
    assert any(told in choice for choice in report.plan.choices)
    assert f'"format": {FORMAT}' in (tmp_path / "out.safetensors.lora_export.json").read_text()
    assert told in (tmp_path / "out.safetensors.lora_export.json").read_text()
    again = verify(
        tmp_path / "out.safetensors",
        base=tmp_path / "base.pt",
        adapters=[tmp_path / "lora.pt"],
        model=f"{tmp_path}/net.py:build",
    )
    assert PROVEN in names(again)


def test_an_encoder_without_the_prefix_becomes_onnx(tmp_path):
    _, base, adapter = tagger()
    paths = files(tmp_path, WRAPPED, base, adapter)
    report = export_onnx(*paths[:2], tmp_path / "out.onnx", model=f"{tmp_path}/net.py:build")
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_gpt2_of_the_examples(wrapper, tmp_path):
    model = network(GPT)
    base = under("transformer.", state(model))
    adapter = {wrapper + name: tensor for name, tensor in state(model, factors=True).items()}
    report, found = merged(tmp_path, GPT, base, adapter)
    assert {PROVEN, OWN} <= set(names(report))
    wanted = evaluated(model)
    assert found.keys() == base.keys()
    assert all(torch.equal(found[name], wanted[f"transformer.{name}"]) for name in base)


def test_a_base_with_a_prefix_that_the_network_lacks(tmp_path):
    code = WRAPPED.replace("return Tagger()", "return Encoder()")
    model = network(code)
    base = {f"model.encoder.{name}": tensor for name, tensor in state(model).items()}
    base["head.weight"] = torch.randn(3, 6)
    report, found = merged(tmp_path, code, base, state(model, factors=True))
    assert {PROVEN, OWN} <= set(names(report))
    wanted = evaluated(model)
    assert all(torch.equal(found[f"model.encoder.{name}"], wanted[name]) for name in wanted)
    assert torch.equal(found["head.weight"], base["head.weight"])
    assert sum("head.weight" in warning for warning in report.warnings) == 1


def test_an_adapter_with_names_of_a_third_kind(tmp_path):
    model, base, adapter = tagger()
    factors = {
        name.replace("model.encoder.", "backbone."): tensor
        for name, tensor in adapter.items()
        if "lora_" in name
    }
    head = {name: tensor for name, tensor in adapter.items() if name.startswith("head.")}
    report, found = merged(tmp_path, WRAPPED, base, {**factors, **head})
    assert {PROVEN, OWN} <= set(names(report))
    weight = evaluated(model)["model.encoder.layers.0.weight"]
    assert torch.equal(found["layers.0.weight"], weight)


def test_a_tensor_outside_of_the_prefix_never_replaces_the_encoders(tmp_path):
    code = WRAPPED.replace("self.head = nn", "self.norm = nn.LayerNorm(6); self.head = nn")
    code = code.replace(
        'self.head(self.model["encoder"](x))', 'self.head(self.norm(self.model["encoder"](x)))'
    )
    model = network(code)
    whole = state(model)
    outside = {n: tensor for n, tensor in whole.items() if not n.startswith("model.")}
    adapter = {**state(model, factors=True), **outside}
    base = under("model.encoder.", whole)
    assert "norm.weight" in base
    assert "norm.weight" in adapter
    with pytest.raises(FitError, match=r"norm\.weight: lies outside of model\.encoder\."):
        merged(tmp_path, code, base, adapter)


@pytest.mark.parametrize("alpha", [6, 9])
def test_the_adapters_names_are_those_of_the_network(alpha, tmp_path):
    """Another module of the network has the base's names, and no factors in the file."""
    code = WRAPPED.replace("lora_alpha=6", f"lora_alpha={alpha}")
    code = code.replace("self.head =", "self.layers = nn.Sequential(nn.Linear(6, 8)); self.head =")
    model = network(code)
    base = under("model.encoder.", state(model))
    outside = {n: t for n, t in state(model).items() if n.startswith("head.")}
    report, found = merged(tmp_path, code, base, {**state(model, factors=True), **outside})
    [delta] = [delta for step in report.plan.steps() for delta in step.deltas]
    assert delta.alpha == alpha
    wanted = evaluated(model)["model.encoder.layers.0.weight"]
    assert torch.equal(found["layers.0.weight"], wanted)
    assert any("holds layers.0.weight, layers.0.bias" in note for note in report.warnings)


def test_a_base_of_names_outside_of_the_prefix(tmp_path):
    model, base, adapter = tagger()
    base["head.weight"] = torch.randn(3, 6)  # as GPT-2's lm_head stands beside h.0
    _, found = merged(tmp_path, WRAPPED, base, adapter)
    assert torch.equal(found["head.weight"], evaluated(model)["head.weight"])


HEAD = ["head.weight", "head.bias"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_head_in_neither_base_nor_adapter(asked, tmp_path):
    _, base, adapter = tagger()
    factors = {name: tensor for name, tensor in adapter.items() if name not in HEAD}
    if asked:
        with pytest.raises(FitError, match=r"head\.bias: the checkpoint holds no value for it"):
            merged(tmp_path, WRAPPED, base, factors, rtol=0.1)
        return
    report, found = merged(tmp_path, WRAPPED, base, factors)
    assert PROVEN not in names(report)
    assert report.checks
    told = "the proof is by weights only: neither base nor adapter holds head.weight, head.bias"
    assert any(told in warning for warning in report.warnings)
    assert found.keys() == base.keys()
    with pytest.raises(FitError, match=r"head\.bias: the checkpoint holds no value for it"):
        export_onnx(
            tmp_path / "base.pt",
            [tmp_path / "lora.pt"],
            tmp_path / "out.onnx",
            model=f"{tmp_path}/net.py:build",
        )


@pytest.mark.parametrize("lost", ["layers.2.weight", "layers.2.", "norm.weight"])
def test_a_base_that_lacks_a_part_of_a_layer_is_of_another_network(lost, tmp_path):
    _, base, adapter = tagger()
    base = {name: tensor for name, tensor in base.items() if not name.startswith(lost)}
    with pytest.raises(FitError, match="the checkpoint holds no value for it"):
        merged(tmp_path, WRAPPED, base, adapter)


def test_a_tensor_that_the_adapter_changes_needs_a_place_in_the_network(tmp_path):
    _, base, adapter = tagger()
    base["pooler.weight"] = torch.randn(4, 4)
    adapter["model.encoder.pooler.weight"] = torch.randn(4, 4)
    with pytest.raises(FitError, match=r"pooler\.weight: is changed by the adapter, and the net"):
        merged(tmp_path, WRAPPED, base, adapter)


UNDECLARED = WRAPPED.replace("INPUTS", "OTHER")


@pytest.mark.parametrize("options", [{"verify": False}, {"dry_run": True}, {}])
def test_inputs_are_declared_only_to_run_the_network(options, tmp_path):
    _, base, adapter = tagger()
    report, _ = merged(tmp_path, UNDECLARED, base, adapter, **options)
    assert PROVEN not in names(report)
    told = [w for w in report.warnings if "inputs are not declared" in w and "--input" in w]
    assert len(told) == (not options)


def test_inputs_are_asked_for_where_the_proof_is(tmp_path):
    _, base, adapter = tagger()
    with pytest.raises(UsageError, match="inputs are not declared"):
        merged(tmp_path, UNDECLARED, base, adapter, atol=1e-3)
    report, _ = merged(tmp_path, UNDECLARED, base, adapter, input=["x=float32[batch,6]"])
    assert PROVEN in names(report)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["layers.2"], {"trust_file": False}),
        (["layers.2", "layers.9"], {"allow_unmatched": ["base_model.model.*.layers.9.*"]}),
    ],
)
def test_what_is_left_out_of_an_adapter_does_not_hide_the_prefix(targets, options, tmp_path):
    plain = WRAPPED.replace("lora.Linear(6, 8, r=2, lora_alpha=6)", "nn.Linear(6, 8)")
    base = under("model.encoder.", state(network(plain)))
    paths = files(tmp_path, plain, base, {})
    draw = torch.Generator().manual_seed(3)
    factors = {
        f"base_model.model.model.encoder.layers.{layer}.lora_{role}.weight": torch.randn(
            size, generator=draw
        )
        for layer in (2, 9)
        for role, size in (("A", (2, 8)), ("B", (6, 2)))
    }
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file(factors, lora / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    report = merge(paths[0], [lora], paths[2], model=f"{tmp_path}/net.py:build", **options)
    assert len(report.plan.unmatched) == 2
    assert [step.out.name for step in report.plan.changed()] == ["layers.2.weight"]
