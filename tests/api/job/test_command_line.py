"""A refusal for want of facts ends in the complete command."""

import shlex

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.errors import UsageError


@pytest.fixture
def files(tmp_path):
    """A MergedLinear of which the shapes do not tell the blocks."""
    base = {"fc.weight": torch.randn(24, 8), "fc.bias": torch.randn(24)}
    lora = {"fc.lora_A": torch.randn(4, 8), "fc.lora_B": torch.randn(16, 2)}
    save_file(base, tmp_path / "my base.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    return tmp_path / "my base.safetensors", [tmp_path / "lora.safetensors"]


def command_of(refused):
    last = refused.value.problems[-1]
    return shlex.split(last.hint.rpartition("the values of the training: ")[2])


def test_every_missing_fact_is_in_one_command(files, tmp_path):
    base, adapters = files
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match=r"2 of 3 blocks[^$]*alpha is not in the file") as refused:
        merge(base, adapters, out)
    words = ["lora-export", "merge", str(base), str(adapters[0]), "-o", str(out)]
    asked = ["--alpha", "ALPHA", "--enable-lora", "BLOCKS"]
    assert sorted(command_of(refused)) == sorted([*words, *asked])
    assert not any("the values of the training" in p.hint for p in refused.value.problems[:-1])


def test_swapped_base_and_adapter_end_in_the_command_with_both_in_order(files, tmp_path):
    base, (adapter,) = files
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="named as the base") as refused:
        merge(adapter, [base], out, alpha=4.0)
    (problem,) = refused.value.problems
    words = ["lora-export", "merge", str(base), str(adapter), "-o", str(out), "--alpha", "4"]
    assert (problem.cause, shlex.split(problem.hint)) == ("usage/swapped", words)


def test_what_was_given_stays_in_the_command(files):
    given = {"alpha": 4.0, "weight": [2.0], "recipe": "exact", "verify": False, "jobs": 1}
    with pytest.raises(UsageError, match="2 of 3 blocks") as refused:
        merge(*files, **given)
    told = " ".join(command_of(refused))
    for words in ("--alpha 4 ", "--weight 2 ", "--recipe exact", "--no-verify", "--jobs 1"):
        assert words in told
    assert told.endswith("-o OUT --enable-lora BLOCKS")


@pytest.mark.parametrize("verb", ["onnx", "verify"])
def test_of_other_verbs(verb, files, tmp_path):
    base, adapters = files
    calls = {
        "onnx": lambda **options: export_onnx(base, adapters, tmp_path / "out.onnx", **options),
        "verify": lambda **options: verify(base, base=base, adapters=adapters, **options),
    }
    with pytest.raises(UsageError) as refused:
        calls[verb](enable_lora=[True, False, True])
    told = " ".join(command_of(refused))
    assert told.startswith(f"lora-export {verb} {base}")
    assert "--enable-lora 1,0,1" in told
    assert told.endswith("--alpha ALPHA")
    assert (f"--adapter {adapters[0]}" in told) == (verb == "verify")


def test_a_refusal_that_asks_for_nothing_has_no_command(files):
    with pytest.raises(UsageError) as refused:
        merge(*files, alpha=-1.0, enable_lora="1,0,1")
    assert "lora-export merge" not in str(refused.value)
