"""--dtype: every floating tensor of the result in one dtype, rounded once from float32."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft_folders import llama, save
from safetensors.torch import load_file, save_file

from lora_export.api import merge, unmerge, verify
from lora_export.errors import FitError, UsageError, VerificationError
from lora_export.execution import arithmetic, casting

pytestmark = pytest.mark.filterwarnings("ignore")  # of old names, in transformers and PEFT

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
KINDS = {
    "linear": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def in_float32(folder, auto):
    """The model merged by PEFT in float32, before it is rounded."""
    base = auto.from_pretrained(folder / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder / "lora").merge_and_unload()
    return merged.state_dict()


def stored(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("base", TORCH)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_pefts_merge_in_float32_rounded_once(kind, base, dtype, tmp_path):
    model = llama(layers=1)
    save(tmp_path, model, LoraConfig(r=4, lora_alpha=8, **KINDS[kind]), dtype=TORCH[base])
    out = tmp_path / "out"
    report = merge(tmp_path / "base", [tmp_path / "lora"], out, dtype=dtype)
    assert report.passed
    found, wanted = stored(out), in_float32(tmp_path, type(model))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(TORCH[dtype])), name
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    if kind == "linear":
        assert verify(out, base=tmp_path / "base", adapters=[tmp_path / "lora"]).passed


def plain(folder, tensors, *, low=None):
    """A base file of these tensors and an adapter of `fc`."""
    torch.manual_seed(0)
    low = low or {"fc.lora_A": torch.randn(2, 40), "fc.lora_B": torch.randn(96, 2)}
    save_file(tensors, folder / "base.safetensors")
    save_file(low, folder / "lora.safetensors")
    return folder / "base.safetensors", [folder / "lora.safetensors"]


def mixed(dtype=torch.float32):
    torch.manual_seed(1)
    return {
        "fc.weight": torch.randn(96, 40).to(dtype),
        "norm.weight": torch.randn(40).double(),
        "table.weight": torch.randn(300, 40).to(dtype),
        "half.weight": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "mask": torch.tensor([float("-inf"), float("nan"), 0.0]),
        "steps": torch.arange(5),
        "flags": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("dtype", TORCH)
def test_what_is_no_float_stays_and_all_else_is_rounded_in_blocks(
    dtype, jobs, tmp_path, monkeypatch
):
    monkeypatch.setattr(casting, "CHUNK", 1000)
    monkeypatch.setattr(arithmetic, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(casting, "BLOCK_ELEMENTS", 300)
    tensors = mixed()
    files = plain(tmp_path, tensors)
    out = tmp_path / "out.safetensors"
    report = merge(*files, out, alpha=4.0, dtype=dtype, jobs=jobs)
    found = load_file(out)
    for name, tensor in tensors.items():
        if name == "fc.weight":
            continue
        wanted = tensor.to(TORCH[dtype]) if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name].nan_to_num(), wanted.nan_to_num()), name
    assert found["fc.weight"].dtype == TORCH[dtype]
    [check] = [check for check in report.checks if check.name == "untouched tensors"]
    assert "rounded once" in check.detail
    assert verify(out, base=files[0], adapters=files[1], alpha=4.0).passed
    manifest = json.loads((tmp_path / "out.safetensors.lora_export.json").read_text())
    assert manifest["options"]["dtype"] == dtype
    [choice] = [choice for choice in manifest["choices"] if choice.startswith("--dtype")]
    assert "1 of BOOL as they are, 1 of I64 as they are" in choice


def test_keep_is_what_is_done_without_it(tmp_path):
    files = plain(tmp_path, mixed(torch.bfloat16))
    merge(*files, tmp_path / "one.safetensors", alpha=4.0)
    merge(*files, tmp_path / "other.safetensors", alpha=4.0, dtype="keep")
    one, other = (tmp_path / f"{name}.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["table.weight", "fc.weight"])
@pytest.mark.parametrize(
    ("dtype", "large", "hint"),
    [("float16", 7e4, "--dtype bfloat16"), ("bfloat16", 3.4e38, "--dtype float32")],
)
def test_overflow_is_refused_with_the_tensor(dtype, large, hint, name, tmp_path):
    tensors = mixed()
    tensors[name][3, 3] = large
    files = plain(tmp_path, tensors)
    with pytest.raises(FitError) as caught:
        merge(*files, tmp_path / "out.safetensors", alpha=4.0, dtype=dtype)
    [problem] = caught.value.problems
    assert problem.where == name
    assert "overflow" in problem.message
    assert hint in problem.hint
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", TORCH)
def test_a_float64_base_is_merged_in_float64(dtype, tmp_path):
    tensors = mixed(torch.float64)
    files = plain(tmp_path, tensors)
    assert merge(*files, tmp_path / "out.safetensors", alpha=4.0, dtype=dtype).passed
    low = {name: factor.double() for name, factor in load_file(files[1][0]).items()}
    exact = tensors["fc.weight"] + (low["fc.lora_B"] @ low["fc.lora_A"]) * 2.0
    found = load_file(tmp_path / "out.safetensors")["fc.weight"]
    assert torch.equal(found, exact.to(TORCH[dtype]))


def folder(tmp_path, config, **tensors):
    base = tmp_path / "base"
    base.mkdir()
    save_file({**mixed(torch.bfloat16), **tensors}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(config))
    _, adapters = plain(tmp_path, mixed())
    return base, adapters


def test_every_config_that_names_a_dtype_is_edited(tmp_path):
    config = {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "rope": {"dtype": None}, "hidden_size": 4},
        "vision_config": {"encoder": {"torch_dtype": "bfloat16"}},
        "audio_config": {"dtype": "float16"},
        "other": [1, {"dtype": "bfloat16"}],
    }
    base, adapters = folder(tmp_path, config)
    report = merge(base, adapters, tmp_path / "out", alpha=4.0, dtype="float16")
    config["torch_dtype"] = config["text_config"]["dtype"] = "float16"
    config["vision_config"]["encoder"]["torch_dtype"] = "float16"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert report.plan.edits()["config.json"] == (
        'torch_dtype: "float16"',
        'text_config.dtype: "float16"',
        'vision_config.encoder.torch_dtype: "float16"',
    )
    assert "--dtype float16" in (tmp_path / "out" / "README.md").read_text()


def test_a_quantised_base_is_refused_before_writing(tmp_path):
    config = {"quantization_config": {"quant_method": "fp8"}}
    packed = {
        "q.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        "q.weight_scale_inv": torch.ones(1, 1),
    }
    base, adapters = folder(tmp_path, config, **packed)
    with pytest.raises(FitError, match=r"FP8.*scales keep their dtype"):
        merge(base, adapters, tmp_path / "out", alpha=4.0, dtype="float16")
    assert merge(base, adapters, tmp_path / "out", alpha=4.0).passed


def test_the_dry_run_knows_the_size(tmp_path):
    files = plain(tmp_path, mixed())
    need = {
        dtype: merge(*files, alpha=4.0, dtype=dtype, dry_run=True).facts["space"]["needed"]
        for dtype in ("float16", "float32")
    }
    floats = 96 * 40 + 40 + 300 * 40 + 7 + 1 + 3
    assert need["float32"] - need["float16"] == 2 * floats


def test_shards_and_their_index_count_the_new_bytes(tmp_path):
    base, adapters = folder(tmp_path, {})
    out = tmp_path / "out"
    merge(base, adapters, out, alpha=4.0, dtype="float32", max_shard_size="20KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored(out).values())
    assert index["metadata"]["total_size"] == total
    assert len(set(index["weight_map"].values())) > 2


@pytest.mark.parametrize("dtype", TORCH)
def test_it_can_be_undone(dtype, tmp_path):
    base, adapters = folder(tmp_path, {"dtype": "bfloat16"})
    merge(base, adapters, tmp_path / "out", alpha=4.0, dtype=dtype, undo=tmp_path / "undo")
    unmerge(tmp_path / "out", tmp_path / "again", undo=tmp_path / "undo")
    for file in base.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_an_update_below_the_dtype_is_refused_with_the_way_out(tmp_path):
    low = {"fc.lora_A": torch.randn(2, 40) * 1e-6, "fc.lora_B": torch.randn(96, 2) * 1e-3}
    files = plain(tmp_path, mixed(torch.bfloat16), low=low)
    with pytest.raises(FitError, match="--dtype float32"):
        merge(*files, tmp_path / "out.safetensors", alpha=4.0)
    assert merge(*files, tmp_path / "out.safetensors", alpha=4.0, dtype="float32").passed


FAULTS = {
    "rounded twice": ("bfloat16", lambda base, exact: exact.half().bfloat16(), "merged elements"),
    "cut off": (
        "bfloat16",
        lambda base, exact: (exact.view(torch.int32) & -65536).view(torch.float32).bfloat16(),
        "merged elements",
    ),
    "scaled by 1 %": ("float16", lambda base, exact: (base + (exact - base) * 1.01).half(), ""),
    "scaled by 1 %, widened": ("float32", lambda base, exact: base + (exact - base) * 1.01, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_merged_tensor_that_is_wrong_is_caught(fault, tmp_path):
    dtype, wrong, name = FAULTS[fault]
    tensors = mixed(torch.bfloat16 if dtype != "bfloat16" else torch.float32)
    files = plain(tmp_path, tensors)
    exact, out = tmp_path / "exact.safetensors", tmp_path / "out.safetensors"
    merge(*files, exact, alpha=4.0, dtype="float32")
    merge(*files, out, alpha=4.0, dtype=dtype, verify=False)
    found, sums = load_file(out), load_file(exact)["fc.weight"]
    planted = wrong(tensors["fc.weight"].float(), sums)
    assert not torch.equal(planted, found["fc.weight"])
    save_file({**found, "fc.weight": planted}, out)
    (tmp_path / "out.safetensors.lora_export.json").unlink()
    with pytest.raises(VerificationError) as caught:
        verify(out, base=files[0], adapters=files[1], alpha=4.0, dtype=dtype)
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert failed & ({name} if name else {"merged elements", "scaling"})


@pytest.mark.parametrize("name", ["table.weight", "half.weight", "mask"])
def test_an_untouched_tensor_that_is_not_rounded_once_is_caught(name, tmp_path):
    files = plain(tmp_path, mixed())
    out = tmp_path / "out.safetensors"
    merge(*files, out, alpha=4.0, dtype="float16", verify=False)
    (tmp_path / "out.safetensors.lora_export.json").unlink()
    found = load_file(out)
    bits = found[name].view(torch.int16)
    bits[-1] ^= 1
    save_file(found, out)
    with pytest.raises(VerificationError) as caught:
        verify(out, base=files[0], adapters=files[1], alpha=4.0, dtype="float16")
    [failed] = [check for check in caught.value.checks if not check.passed]
    assert (failed.name, failed.where) == ("untouched tensors", name)


def test_another_tools_dtype_is_named(tmp_path):
    files = plain(tmp_path, mixed())
    out = tmp_path / "out.safetensors"
    merge(*files, out, alpha=4.0, dtype="bfloat16", verify=False)
    (tmp_path / "out.safetensors.lora_export.json").unlink()
    with pytest.raises(VerificationError, match="--dtype bfloat16"):
        verify(out, base=files[0], adapters=files[1], alpha=4.0)
    assert verify(out, base=files[0], adapters=files[1], alpha=4.0, dtype="bfloat16").passed


def test_it_describes_no_onnx_file(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="--precision"):
        verify(tmp_path / "x.onnx", base="b", adapters=["a"], dtype="float16")
