"""Merged tensors are bit-equal to what loralib's own eval() makes: torch.equal, never allclose."""

import pytest
import torch
from loralib_models import ALPHA, DTYPES, KINDS, evaluated, save_case, trained
from safetensors.torch import load_file

from lora_export.api import merge


def facts(kind: str) -> dict:
    """What the file does not hold, as a user would give it: only where the shapes leave it open."""
    given = {"alpha": ALPHA}
    if kind.startswith("merged"):
        given["enable_lora"] = ",".join(kind.split()[1])
    if "square" in kind:
        given["fan_in_fan_out"] = "fan_in_fan_out" in kind
    return given


@pytest.mark.parametrize("rank", [1, 4, 8, 64])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_bit_equal_to_loralib_eval(kind, dtypes, rank, tmp_path):
    model = trained(kind, rank, DTYPES[dtypes])
    base, adapter = save_case(model, tmp_path)
    expected = evaluated(model)

    report = merge(base, [adapter], tmp_path / "out.safetensors", **facts(kind))

    merged = load_file(tmp_path / "out.safetensors")
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor), name
    assert not torch.equal(
        merged["block.conv.weight" if "conv" in kind else "block.weight"],
        load_file(base)["block.conv.weight" if "conv" in kind else "block.weight"],
    )
    assert report.passed


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "kind", ["linear", "linear square fan_in_fan_out", "conv2d k=3 groups=2", "merged 101"]
)
def test_biases_of_the_adapter_replace_the_bases(kind, dtypes, bias, tmp_path):
    model = trained(kind, 4, DTYPES[dtypes])
    base, adapter = save_case(model, tmp_path, bias=bias)
    expected = evaluated(model)

    report = merge(base, [adapter], tmp_path / "out.safetensors", **facts(kind))

    merged = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    replaced = {step.out.name for step in report.plan.steps() if step.action == "replace"}
    # loralib 0.1.2 looks for `<module>.bias`, which a convolution of its own does not have.
    own = set() if "conv" in kind else {"block.bias"}
    everything = {name for name in expected if "bias" in name}
    assert replaced == {"none": set(), "lora_only": own, "all": everything}[bias]
