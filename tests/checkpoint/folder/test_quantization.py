"""Every scheme is recognised by what it stores, with and without a word of config.json."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_export.checkpoint.folder.quantization import find_quantization
from lora_export.checkpoint.index import read_checkpoint
from lora_export.records import Checkpoint, Shard, TensorRef, TensorSpec

M = "model.layers.0.self_attn.q_proj"
E = "model.layers.0.mlp.experts.gate_up_proj"
PLAIN = {"model.norm.weight": "BF16", "lm_head.weight": "BF16"}

# scheme: (tensors as transformers or the scheme's own library saves them, the quantised weight)
STORED = {
    "bitsandbytes 4-bit": (
        {
            f"{M}.weight": "U8", f"{M}.weight.absmax": "U8", f"{M}.weight.quant_map": "F32",
            f"{M}.weight.nested_absmax": "F32", f"{M}.weight.quant_state.bitsandbytes__nf4": "U8",
        },
        f"{M}.weight",
    ),
    "bitsandbytes 8-bit": (
        {f"{M}.weight": "I8", f"{M}.SCB": "F32", f"{M}.weight_format": "U8"}, f"{M}.weight"
    ),
    "GPTQ": (
        {
            f"{M}.qweight": "I32", f"{M}.qzeros": "I32", f"{M}.scales": "F16", f"{M}.g_idx": "I32",
        },
        f"{M}.weight",
    ),
    "AWQ": ({f"{M}.qweight": "I32", f"{M}.qzeros": "I32", f"{M}.scales": "F16"}, f"{M}.weight"),
    "compressed-tensors": (
        {f"{M}.weight_packed": "I32", f"{M}.weight_scale": "BF16", f"{M}.weight_shape": "I64"},
        f"{M}.weight",
    ),
    "scaled integers or FP8": (
        {f"{M}.weight": "F8_E4M3", f"{M}.weight_scale": "BF16", f"{M}.input_scale": "BF16"},
        f"{M}.weight",
    ),
    "FP8": ({f"{M}.weight": "F8_E4M3", f"{M}.weight_scale_inv": "F32"}, f"{M}.weight"),
    "NVFP4": (
        {f"{M}.weight": "U8", f"{M}.weight_scale": "F8_E4M3", f"{M}.weight_scale_2": "F32"},
        f"{M}.weight",
    ),
    "EETQ": ({f"{M}.weight": "I8", f"{M}.weight_scales": "F16"}, f"{M}.weight"),
    "HQQ": ({f"{M}.W_q": "U8", f"{M}.scale": "F16", f"{M}.zero": "F16"}, f"{M}.weight"),
    "quanto": ({f"{M}.weight._data": "I8", f"{M}.weight._scale": "F16"}, f"{M}.weight"),
    "torchao": ({f"{M}._weight_qdata": "I8", f"{M}._weight_scale": "F32"}, f"{M}.weight"),
    "MXFP4": ({f"{E}_blocks": "U8", f"{E}_scales": "U8", f"{E}_bias": "BF16"}, E),
    "AQLM": ({f"{M}.codes": "I8", f"{M}.codebooks": "F16", f"{M}.scales": "F16"}, f"{M}.weight"),
    "VPTQ": ({f"{M}.centroids.weight": "F16", f"{M}.indices": "I32"}, f"{M}.weight"),
}  # fmt: skip


def checkpoint(tensors, path, **config):
    refs = tuple(
        TensorRef(TensorSpec(name, dtype, (4, 4)), path, 0, 16) for name, dtype in tensors.items()
    )
    return Checkpoint(path, "folder", (Shard(path, refs),), config=config)


@pytest.mark.parametrize(("tensors", "weight"), STORED.values(), ids=STORED)
def test_a_scheme_is_known_by_its_tensors(tensors, weight, request, tmp_path):
    found = find_quantization(checkpoint({**PLAIN, **tensors}, tmp_path))
    assert found.method == request.node.callspec.id
    assert list(found.weights) == [weight]
    assert found.weights[weight] in tensors
    assert (found.claims, found.remains) == ((), True)


CLAIMS = {
    "bitsandbytes 4-bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes 8-bit": {"load_in_8bit": True},
    "GPTQ": {"quant_method": "gptq", "bits": 4},
    "AWQ": {"quant_method": "awq"},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "MXFP4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "torchao": {"quant_method": "torchao"},
    "of tomorrow": {"quant_method": "of tomorrow"},
    "an unknown scheme": {"bits": 4},
}


@pytest.mark.parametrize(("method", "claim"), CLAIMS.items(), ids=CLAIMS)
def test_the_configuration_names_the_scheme(method, claim, tmp_path):
    base = checkpoint({**PLAIN, f"{M}.weight": "U8"}, tmp_path, quantization_config=claim)
    found = find_quantization(base)
    assert (found.method, list(found.weights)) == (method, [f"{M}.weight"])
    assert found.claims == ("quantization_config",)
    stale = find_quantization(checkpoint(PLAIN, tmp_path, quantization_config=claim))
    assert (stale.method, stale.weights, stale.remains) == (method, {}, False)


NOT = {
    "a plain model": PLAIN,
    "masks and positions": {**PLAIN, "h.0.attn.bias": "BOOL", "position_ids": "I64"},
    "a scale beside a plain weight": {**PLAIN, "lm_head.weight_scale": "F32"},
    "tensors with a like name": {"block.scales": "F32", "x.codes": "I8", "a_scales": "F32"},
    "a tensor in float8 without scales": {**PLAIN, f"{M}.weight": "F8_E4M3"},
}


@pytest.mark.parametrize("tensors", NOT.values(), ids=NOT)
def test_what_is_no_scheme_is_not_taken_for_one(tensors, tmp_path):
    assert find_quantization(checkpoint(tensors, tmp_path)) is None


def test_bits_of_bitsandbytes_in_a_float_tensor_are_seen(tmp_path):
    tensors = {f"{M}.weight": "BF16", f"{M}.weight.quant_state.bitsandbytes__nf4": "U8"}
    assert list(find_quantization(checkpoint(tensors, tmp_path)).weights) == [f"{M}.weight"]


def test_a_checkpoint_is_read_with_what_is_quantised_in_it(tmp_path):
    marked = {f"{M}.qweight": np.zeros((2, 2), "i4"), f"{M}.g_idx": np.zeros(2, "i4")}
    for name, tensors in {"plain": {f"{M}.weight": np.zeros((2, 2), "f4")}, "gptq": marked}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    assert read_checkpoint(tmp_path / "plain.safetensors").quantization is None
    found = read_checkpoint(tmp_path / "gptq.safetensors")
    assert found.quantization == find_quantization(found)
    assert found.quantization.weights == {f"{M}.weight": f"{M}.g_idx"}
