"""What is planned, and what is refused with every reason, from files as users bring them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError, InputError, UsageError
from lora_export.records import Step


def tensor(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


BASE = {
    "h.0.attn.weight": tensor(12, 8),
    "h.0.attn.bias": tensor(12),
    "h.1.attn.weight": tensor(12, 8),
    "h.1.attn.bias": tensor(12),
    "ln.weight": tensor(8),
}
ADAPTER = {
    f"h.{n}.attn.lora_{role}": tensor(*shape)
    for n in (0, 1)
    for role, shape in (("A", (2, 8)), ("B", (12, 2)))
}


class Case:
    """A base and adapters in a folder, and merge called on them."""

    def __init__(self, folder):
        self.folder = folder

    def merge(self, adapter=ADAPTER, base=BASE, output="out.safetensors", **settings):
        save_file({k: v.clone() for k, v in base.items()}, self.folder / "base.safetensors")
        torch.save(adapter, self.folder / "lora.pt")
        settings = {"alpha": 4, **settings}
        return merge(
            self.folder / "base.safetensors",
            [self.folder / "lora.pt"],
            self.folder / output,
            **settings,
        )

    def plan(self, **inputs):
        return self.merge(dry_run=True, **inputs).plan


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def renamed(tensors, change):
    return {change(name): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("adapter_name", "base_name"),
    [
        (lambda n: n, lambda n: n),
        (lambda n: f"module.{n}", lambda n: n),
        (lambda n: f"_orig_mod.{n}", lambda n: n),
        (lambda n: f"module._orig_mod.{n}", lambda n: n),
        (lambda n: n.replace("attn", "attn._fsdp_wrapped_module"), lambda n: n),
        (lambda n: n.replace("attn", "_orig_mod.attn"), lambda n: n),
        (lambda n: f"module.transformer.{n}", lambda n: n),
        (lambda n: n, lambda n: f"transformer.{n}"),
        (lambda n: n, lambda n: f"module.{n}"),
        (lambda n: f"module.{n}", lambda n: f"model.decoder.{n}"),
        (lambda n: n, lambda n: n.replace(".weight", ".w").replace(".bias", ".b")),
        (lambda n: n, lambda n: n.replace("attn.weight", "attn.conv.weight")),
    ],
)
def test_every_module_finds_its_weight(adapter_name, base_name, case):
    adapter = renamed(ADAPTER, adapter_name)
    base = renamed(BASE, base_name)
    wanted = {base_name("h.0.attn.weight"), base_name("h.1.attn.weight")}
    assert {step.out.name for step in case.plan(adapter=adapter, base=base).changed()} == wanted


REFUSED = {
    "no base weight": (
        FitError,
        {"adapter": renamed(ADAPTER, lambda n: n.replace("attn", "mlp"))},
        ["h.0.mlp", "0 of 2 modules are in this base", "h.0.attn.weight"],
    ),
    "one module resolves, one does not": (
        FitError,
        {"adapter": renamed(ADAPTER, lambda n: n.replace("h.1", "h.7"))},
        ["h.7.attn"],
    ),
    "prefix exchanged": (
        FitError,
        {
            "adapter": renamed(ADAPTER, lambda n: f"roberta.{n}"),
            "base": renamed(BASE, lambda n: f"bert.{n}"),
        },
        ["exchanged", "--rename"],
    ),
    "two places": (
        FitError,
        {"base": renamed(BASE, lambda n: f"encoder.{n}") | renamed(BASE, lambda n: f"decoder.{n}")},
        ["2 places", "--rename"],
    ),
    "shapes": (
        FitError,
        {"base": {**BASE, "h.1.attn.weight": tensor(12, 9)}},
        ["A [2, 8] and B [12, 2] fit no layer", "[12, 9]"],
    ),
    "integer base": (
        FitError,
        {"base": {**BASE, "h.0.attn.weight": torch.ones(12, 8, dtype=torch.int8)}},
        ["I8"],
    ),
    "zero factors": (
        FitError,
        {"adapter": {n: torch.zeros_like(t) if "B" in n else t for n, t in ADAPTER.items()}},
        ["all zero", "--allow-noop"],
    ),
    "unknown full tensor": (
        FitError,
        {"adapter": {**ADAPTER, "head.weight": tensor(3, 8)}},
        ["head.weight", "--allow-new", "--allow-unmatched"],
    ),
    "head of another size": (
        FitError,
        {"adapter": {**ADAPTER, "ln.weight": tensor(9)}},
        ["[9]", "[8]"],
    ),
    "weight that may be merged": (
        FitError,
        {"adapter": {**ADAPTER, "h.0.attn.weight": tensor(12, 8) + 1}},
        ["whether it already contains the update", "train() on"],
    ),
    "everything left out": (FitError, {"allow_unmatched": ["*"]}, ["no low-rank factors are left"]),
    "alpha": (UsageError, {"alpha": None}, ["alpha is not in the file", "--alpha 16", "2 places"]),
    "alpha zero": (UsageError, {"alpha": 0.0}, ["alpha = 0"]),
    "orientation contradicts": (UsageError, {"fan_in_fan_out": True}, ["contradicts the shapes"]),
    "enable_lora unreadable": (UsageError, {"enable_lora": "1,x"}, ["'x'"]),
    "rename unreadable": (UsageError, {"rename": "transformer"}, ["OLD=NEW"]),
    "weights": (UsageError, {"weight": [1.0, 2.0]}, ["2 weights for 1 adapter"]),
    "dialect": (UsageError, {"dialect": "nope"}, ["unknown dialect", "loralib"]),
    "factors in the base": (
        InputError,
        {"base": {**BASE, **ADAPTER}},
        ["4 low-rank factors", "--unmerged-base", "double", "docs/formats-loralib.md"],
    ),
    "base and adapter swapped": (
        UsageError,
        {"base": ADAPTER, "adapter": BASE},
        ["base.safetensors", "without weights", "-> lora-export merge "],
    ),
    "partner missing": (
        InputError,
        {"adapter": {k: v for k, v in ADAPTER.items() if k != "h.0.attn.lora_B"}},
        ["lora_B is missing", "h.0.attn"],
    ),
    "no adapter": (
        InputError,
        {"adapter": {"flora_net.weight": tensor(2, 2)}},
        ["no low-rank factors found"],
    ),
    "PEFT": (
        InputError,
        {"adapter": renamed(ADAPTER, lambda n: f"base_model.model.{n}.weight")},
        ["PEFT adapter"],
    ),
    "integer factor": (
        InputError,
        {"adapter": {**ADAPTER, "h.0.attn.lora_A": torch.ones(2, 8, dtype=torch.int32)}},
        ["I32"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason_and_nothing_written(name, case):
    kind, inputs, words = REFUSED[name]
    with pytest.raises(kind) as caught:
        case.merge(**inputs)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert not (case.folder / "out.safetensors").exists()


def test_all_problems_are_told_together(case):
    adapter = {**ADAPTER, "head.weight": tensor(3, 8), "ln.weight": tensor(9)}
    with pytest.raises(FitError) as caught:
        case.merge(adapter=adapter, alpha=None)
    text = str(caught.value)
    assert "head.weight" in text
    assert "ln.weight" in text
    assert "alpha is not in the file" in text


@pytest.mark.parametrize(
    ("inputs", "changed"),
    [
        (
            {
                "rename": "=encoder",
                "base": renamed(BASE, lambda n: f"encoder.{n}")
                | renamed(BASE, lambda n: f"decoder.{n}"),
            },
            {"encoder.h.0.attn.weight", "encoder.h.1.attn.weight"},
        ),
        (
            {
                "rename": "roberta=bert",
                "adapter": renamed(ADAPTER, lambda n: f"roberta.{n}"),
                "base": renamed(BASE, lambda n: f"bert.{n}"),
            },
            {"bert.h.0.attn.weight", "bert.h.1.attn.weight"},
        ),
        ({"allow_unmatched": ["h.1.*"]}, {"h.0.attn.weight"}),
        (
            {"adapter": {**ADAPTER, "h.0.attn.bias": tensor(12) + 1}},
            {"h.0.attn.weight", "h.1.attn.weight", "h.0.attn.bias"},
        ),
        (
            {"adapter": {**ADAPTER, "head.weight": tensor(3, 8)}, "allow_new": ["head.*"]},
            {"h.0.attn.weight", "h.1.attn.weight", "head.weight"},
        ),
        # A copy of the base's own weight: a state dict saved in train() mode.
        ({"adapter": {**ADAPTER, **BASE}}, {"h.0.attn.weight", "h.1.attn.weight"}),
        (
            {"base": {**BASE, **ADAPTER}, "unmerged_base": True},
            {"h.0.attn.weight", "h.1.attn.weight"},
        ),
        (
            {"adapter": {"model_state_dict": ADAPTER, "epoch": 3}},
            {"h.0.attn.weight", "h.1.attn.weight"},
        ),
    ],
)
def test_planned_changes(inputs, changed, case):
    plan = case.plan(**inputs)
    assert {step.out.name for step in plan.changed()} == changed
    assert not any(step.out.name.endswith(("lora_A", "lora_B")) for step in plan.steps())


def test_a_table_that_overrides_an_option_is_a_choice(case):
    hparams = case.folder / "facts.toml"
    hparams.write_text('[[module]]\nmatch = "h.1.*"\nalpha = 3')
    [told] = case.plan(alpha=16, hparams=hparams).choices
    assert told == f"alpha=3 for 1 module from {hparams}: [[module]] 1 overrides --alpha 16"


def test_what_unmerged_base_claims_is_told(case):
    [warning] = case.plan(base={**BASE, **ADAPTER}, unmerged_base=True).warnings
    assert "cannot be checked" in warning
    assert "the update twice" in warning


def test_tensors_equal_to_the_base_are_one_choice(case):
    [told] = case.plan(adapter={**ADAPTER, **BASE}).choices
    assert told.startswith("5 full tensors equal to the base's, which is kept (h.0.attn.")
    assert told.endswith(" and 2 more)")


@pytest.mark.parametrize(
    ("adapter_prefix", "base_prefix", "choices", "warned"),
    [
        ("", "", [], ""),
        ("module.", "", ["lora.pt: names are compared without 'module.'"], ""),
        ("_orig_mod.", "", ["lora.pt: names are compared without '_orig_mod.'"], ""),
        ("", "module.", ["lora.pt: names are compared without 'module.'"], "carry 'module.'"),
        ("module.", "module.", [], "carry 'module.'"),
        ("", "_orig_mod.", ["lora.pt: names are compared without '_orig_mod.'"], "'_orig_mod.'"),
    ],
)
def test_prefixes_of_wrappers_are_told(adapter_prefix, base_prefix, choices, warned, case):
    plan = case.plan(
        adapter=renamed(ADAPTER, lambda n: adapter_prefix + n),
        base=renamed(BASE, lambda n: base_prefix + n),
    )
    assert list(plan.choices) == choices
    assert warned in " ".join(plan.warnings)
    assert bool(plan.warnings) is bool(warned)


def test_bias_and_head_replace_and_the_rest_is_kept(case):
    adapter = {**ADAPTER, "h.0.attn.bias": tensor(12) + 1, "ln.weight": tensor(8).half() + 1}
    case.merge(adapter=adapter)
    merged = load_file(case.folder / "out.safetensors")
    assert torch.equal(merged["h.0.attn.bias"], adapter["h.0.attn.bias"])
    assert torch.equal(merged["ln.weight"], adapter["ln.weight"].float())  # in the base's dtype
    assert torch.equal(merged["h.1.attn.bias"], BASE["h.1.attn.bias"])


def test_both_names_of_a_shared_convolution_change(case):
    base = {"conv.weight": tensor(4, 3, 1, 1), "conv.conv.weight": tensor(4, 3, 1, 1)}
    adapter = {"conv.lora_A": tensor(2, 3), "conv.lora_B": tensor(4, 2)}
    case.merge(adapter=adapter, base=base)
    merged = load_file(case.folder / "out.safetensors")
    assert torch.equal(merged["conv.weight"], merged["conv.conv.weight"])
    assert not torch.equal(merged["conv.weight"], base["conv.weight"])


def test_names_of_a_shared_convolution_that_differ_are_refused(case):
    base = {"conv.weight": tensor(4, 3, 1, 1), "conv.conv.weight": tensor(4, 3, 1, 1) + 1}
    adapter = {"conv.lora_A": tensor(2, 3), "conv.lora_B": tensor(4, 2)}
    with pytest.raises(FitError, match="which differ"):
        case.merge(adapter=adapter, base=base)


def test_several_adapters_are_one_exact_sum(case):
    save_file(BASE, case.folder / "base.safetensors")
    other = {name: value.flip(0) for name, value in ADAPTER.items()}
    save_file(ADAPTER, case.folder / "one.safetensors")
    save_file(other, case.folder / "two.safetensors")
    merge(
        case.folder / "base.safetensors",
        [case.folder / "one.safetensors", case.folder / "two.safetensors"],
        case.folder / "out.safetensors",
        alpha=4,
        weight=[0.5, 2.0],
    )
    merged = load_file(case.folder / "out.safetensors")
    for n in (0, 1):
        a, b, w = f"h.{n}.attn.lora_A", f"h.{n}.attn.lora_B", f"h.{n}.attn.weight"
        wide = [{k: v.double() for k, v in tensors.items()} for tensors in (ADAPTER, other)]
        parts = [(t[b] @ t[a]) * 2 * s for t, s in zip(wide, (0.5, 2.0), strict=True)]
        expected = BASE[w].double() + sum(parts)
        assert torch.allclose(merged[w].double(), expected, rtol=0, atol=1e-5)


def test_the_same_adapter_twice_is_refused(case):
    save_file(BASE, case.folder / "base.safetensors")
    for name in ("one", "two"):
        save_file(ADAPTER, case.folder / f"{name}.safetensors")
    with pytest.raises(FitError, match="named twice"):
        merge(
            case.folder / "base.safetensors",
            [case.folder / "one.safetensors", case.folder / "two.safetensors"],
            case.folder / "out.safetensors",
            alpha=4,
        )


def test_an_adapter_that_is_merged_already_is_refused(case):
    case.merge()
    more = case.folder / "more.safetensors"
    save_file({**ADAPTER, "ln.weight": tensor(8) + 1}, more)
    merge(case.folder / "out.safetensors", [more], case.folder / "twice.safetensors", alpha=4)
    for merged in ("out.safetensors", "twice.safetensors"):  # also with another one in between
        with pytest.raises(FitError, match="merged into the base already"):
            merge(case.folder / merged, [case.folder / "lora.pt"], alpha=4, dry_run=True)


def test_the_plan_is_a_value_that_json_can_hold(case):
    from lora_export.report.document import report_json

    report = case.merge(dry_run=True)
    document = json.loads(json.dumps(report_json(report)))
    assert [entry["name"] for entry in document["plan"]["tensors"]] == sorted(BASE)
    merged = document["plan"]["tensors"][1]
    assert merged["updates"][0]["scaling"] == 2.0
    assert isinstance(report.plan.steps()[0], Step)
    assert not (case.folder / "out.safetensors").exists()


@pytest.mark.parametrize(("given", "stored"), [(False, "(out, in)"), (True, "(in, out)")])
def test_how_square_weights_are_read_is_told(given, stored, case):
    base = {"m.weight": tensor(8, 8), "m.bias": tensor(8)}
    adapter = {"m.lora_A": tensor(2, 8), "m.lora_B": tensor(8, 2)}
    plan = case.plan(base=base, adapter=adapter, fan_in_fan_out=given)
    assert f"1 square weight read as Linear stored {stored}, as given" in plan.choices
