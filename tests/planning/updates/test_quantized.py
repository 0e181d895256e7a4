"""A quantised weight is never added to; one that the merge does not touch stays as it is."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import inspect, merge
from lora_export.errors import FitError, InputError

Q, V = "model.layers.0.q_proj", "model.layers.0.v_proj"
PLAIN = {f"{V}.weight": torch.randn(6, 4).bfloat16(), "model.norm.weight": torch.ones(4)}
ROWS = torch.arange(24, dtype=torch.uint8).view(6, 4)
FP8 = {
    f"{Q}.weight": torch.randn(6, 4).to(torch.float8_e4m3fn),
    f"{Q}.weight_scale_inv": torch.ones(1, 1),
}
STORED = {
    "bitsandbytes": {
        f"{Q}.weight": torch.ones(12, 1, dtype=torch.uint8),
        f"{Q}.weight.absmax": torch.ones(1),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8),
    },
    "bitsandbytes in bfloat16": {
        f"{Q}.weight": torch.randn(6, 4).bfloat16(),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8),
    },
    "gptq": {
        f"{Q}.qweight": ROWS.int(), f"{Q}.qzeros": ROWS.int(), f"{Q}.scales": ROWS.half(),
        f"{Q}.g_idx": torch.zeros(4, dtype=torch.int32),
    },
    "awq": {f"{Q}.qweight": ROWS.int(), f"{Q}.qzeros": ROWS.int(), f"{Q}.scales": ROWS.half()},
    "fp8": FP8,
}  # fmt: skip


def factors(*modules):
    return {
        f"{module}.lora_{role}": torch.randn(shape)
        for module in modules
        for role, shape in (("A", (2, 4)), ("B", (6, 2)))
    }


@pytest.fixture
def folder(tmp_path):
    def make(stored, *, name="X-bnb-4bit", adapter=(Q,), trained_on=None, **config):
        base = tmp_path / name
        base.mkdir()
        save_file({**PLAIN, **stored}, base / "model.safetensors", metadata={"format": "pt"})
        (base / "config.json").write_text(json.dumps({"a": 1, **config}, indent=2))
        lora = tmp_path / "lora"
        lora.mkdir()
        full = {key: torch.ones(6, 4) for key in adapter if key.endswith(".weight")}
        modules = [key for key in adapter if key not in full]
        save_file({**factors(*modules), **full}, lora / "adapter_model.safetensors")
        if trained_on:
            said = json.dumps({"base_model_name_or_path": trained_on})
            (lora / "adapter_config.json").write_text(said)
        return base, lora, tmp_path / "out"

    return make


def refusal(base, lora, out, **options):
    with pytest.raises(FitError) as caught:
        merge(base, [lora], out, alpha=4, **options)
    assert not out.exists()
    return caught.value.problems


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize("adapter", [(Q,), (Q, V), (V, f"{Q}.weight"), ("layers.0.q_proj",)])
def test_an_adapted_quantised_weight_is_refused(stored, adapter, folder):
    [problem] = refusal(*folder(stored, adapter=adapter))
    assert "adapts 1 weight that the base stores quantised (" in problem.message
    assert f"{Q}.weight" in problem.message
    assert problem.hint.endswith("quantised from: X")


def test_let_go_it_is_no_obstacle(folder):
    base, lora, out = folder(FP8, adapter=(Q, V))
    merge(base, [lora], out, alpha=4, allow_unmatched=[f"{Q}.*"])


def test_the_scheme_of_the_configuration_is_named(folder):
    claim = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    paths = folder(STORED["bitsandbytes"], quantization_config=claim)
    assert "(bitsandbytes 4-bit)" in refusal(*paths)[0].message


WAYS_OUT = {
    "the adapter's base": ("any", "org/plain", {}, "org/plain or"),
    "the adapter's quantised base": ("any", "unsloth/Y-unsloth-bnb-4bit", {}, ": unsloth/Y"),
    "the folder's name": ("Y-7B-v0.1-GPTQ", None, {}, ": Y-7B-v0.1"),
    "_name_or_path": ("any", None, {"_name_or_path": "Qwen/Y-7B-AWQ"}, ": Qwen/Y-7B"),
    "nothing": ("any", "/home/someone/model-4bit", {}, "it was quantised from"),
}


@pytest.mark.parametrize(("name", "trained", "config", "hint"), WAYS_OUT.values(), ids=WAYS_OUT)
def test_the_way_out_names_the_base_where_it_is_known(name, trained, config, hint, folder):
    paths = folder(STORED["gptq"], name=name, trained_on=trained, **config)
    told = refusal(*paths)[0].hint
    assert hint.removesuffix(" or") in told
    assert "/home" not in told


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_untouched_it_is_copied_and_stays_declared(stored, folder):
    claim = {"quant_method": "any"}
    base, lora, out = folder(stored, adapter=(V,), quantization_config=claim)
    report = merge(base, [lora], out, alpha=4)
    merged = load_file(out / "model.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(merged[name].view(torch.uint8), tensor.view(torch.uint8))
    assert not torch.equal(merged[f"{V}.weight"], PLAIN[f"{V}.weight"])
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert any("stay quantised" in choice for choice in report.plan.choices)


def test_a_declaration_without_quantised_weights_does_not_stay(folder):
    base, lora, out = folder({}, adapter=(V,), quantization_config={"quant_method": "gptq"}, b=2)
    report = merge(base, [lora], out, alpha=4)
    assert (out / "config.json").read_text() == '{\n  "a": 1,\n  "b": 2\n}'
    manifest = json.loads((out / "lora_export.json").read_text())
    assert manifest["edits"]["config.json"] == ["without quantization_config"]
    assert any("no tensor is quantised" in choice for choice in report.plan.choices)


def test_a_tensor_in_float8_alone_is_copied_and_never_added_to(folder):
    stored = {f"{Q}.weight": FP8[f"{Q}.weight"]}
    base, lora, out = folder(stored, adapter=(V,))
    merge(base, [lora], out, alpha=4)
    merged = load_file(out / "model.safetensors")[f"{Q}.weight"]
    assert torch.equal(merged.view(torch.uint8), stored[f"{Q}.weight"].view(torch.uint8))
    save_file(factors(Q), lora / "adapter_model.safetensors")
    with pytest.raises(FitError, match="F8_E4M3"):
        merge(base, [lora], out.with_name("other"), alpha=4)


def test_no_model_is_built_of_it(folder):
    from lora_export.models.choose import folder_model

    base, lora, out = folder(FP8, adapter=(V,), architectures=["LlamaForCausalLM"])
    report = merge(base, [lora], out, alpha=4)
    assert any(
        "by weights only: the base is described as quantised (FP8)" in told
        for told in report.warnings
    )
    with pytest.raises(InputError, match="quantised"):
        folder_model(report.plan.base, ())


def test_inspect_tells_what_is_quantised(folder):
    base, _, _ = folder(FP8)
    assert inspect(base).facts["found"]["quantized"] == "1 weight (FP8)"
