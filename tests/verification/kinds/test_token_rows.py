"""Trained rows of a table: planted faults are caught, several adapters add up."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import FitError
from lora_export.planning.request import make_request, plan_request
from lora_export.verification.weights.whole_weights import check_weights

TOKENS = [5, 2, 40]


def case(folder, dtype=torch.float32, tokens=TOKENS, name="lora"):
    torch.manual_seed(0)
    table = (torch.randn(70, 8)).to(dtype)
    save_file(
        {"emb.weight": table, "fc.weight": torch.eye(8, dtype=dtype)}, folder / "base.safetensors"
    )
    rows = torch.randn(len(tokens), 8, generator=torch.Generator().manual_seed(len(name)))
    lora = folder / name
    lora.mkdir()
    save_file(
        {"base_model.model.emb.trainable_tokens_delta": rows}, lora / "adapter_model.safetensors"
    )
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": tokens}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    return table, rows, lora


FAULTS = {
    "none": lambda new, old: new,
    "half a per cent too far": lambda new, old: old + (new - old) * 1.005,
    "one row skipped": lambda new, old: torch.cat([new[:5], old[5:6], new[6:]]),
    "rows exchanged": lambda new, old: new[[*range(2), 5, 3, 4, 2, *range(6, 70)]],
    "another row": lambda new, old: torch.cat([new[:9], new[9:10] * 1.02, new[10:]]),
    "nothing done": lambda new, old: old,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault, dtype, tmp_path):
    table, rows, lora = case(tmp_path, dtype)
    new = table.clone()
    new[TOKENS] = rows.to(dtype)
    plan = plan_request(make_request(tmp_path / "base.safetensors", [lora], {}))
    state = load_file(tmp_path / "base.safetensors")
    state["emb.weight"] = FAULTS[fault](new.float(), table.float()).to(dtype)
    save_file(state, tmp_path / "out.safetensors")
    written = read_checkpoint(tmp_path / "out.safetensors").tensors()
    checks, *_ = check_weights(plan, written, allow_noop=False)
    assert all(check.passed for check in checks) is (fault == "none")


@pytest.mark.parametrize("recipe", ["auto", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rows_come_out_bit_for_bit(dtype, recipe, tmp_path):
    table, rows, lora = case(tmp_path, dtype)
    merge(tmp_path / "base.safetensors", [lora], tmp_path / "out.safetensors", recipe=recipe)
    table[TOKENS] = rows.to(dtype)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["emb.weight"], table)


def test_several_adapters_add_their_changes(tmp_path):
    _, one, first = case(tmp_path)
    table, other, second = case(tmp_path, tokens=[5, 60], name="second")
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    merge(base, [first, second], out, weight=[0.5, 2.0])
    expected = table.double()
    expected[TOKENS] += 0.5 * (one.double() - table[TOKENS].double())
    expected[[5, 60]] += 2.0 * (other.double() - table[[5, 60]].double())
    found = load_file(out)["emb.weight"].double()
    assert (found - expected).abs().max() < 1e-6


def test_the_same_adapter_in_another_format_is_the_same(tmp_path):
    *_, lora = case(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    torch.save(load_file(lora / "adapter_model.safetensors"), again / "adapter_model.bin")
    (again / "adapter_config.json").write_text((lora / "adapter_config.json").read_text())
    with pytest.raises(FitError, match="named twice"):
        merge(tmp_path / "base.safetensors", [lora, again], tmp_path / "out.safetensors")
