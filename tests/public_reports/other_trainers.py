"""What people saw with files of other trainers than loralib and PEFT."""

from __future__ import annotations

import pytest
import torch
from litgpt_files import Training, write
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import InputError
from public_reports.report import Report


def _is_litgpts_merge(folder, training):
    base, lora, expected = write(folder, training)
    assert merge(base, [lora], folder / "out.safetensors").passed
    found = load_file(folder / "out.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return expected[f"{training.fused}.weight".format(0)], torch.load(base)


def _blocks_are_not_cut_into_equal_thirds(folder):
    _is_litgpts_merge(folder, Training((True, True, True), groups=2))


def _rows_lie_group_by_group(folder):
    training = Training((True, False, True), groups=4, by_group=True)
    merged, base = _is_litgpts_merge(folder, training)
    keys = torch.arange(len(merged)).view(4, 3, -1)[:, 1].flatten()  # of heads of query, key, value
    changed = (merged != base[f"{training.fused}.weight".format(0)]).any(dim=1)
    assert not changed[keys].any()
    assert int(changed.sum()) == len(merged) - len(keys)


def _factors():
    torch.manual_seed(0)
    return torch.randn(6, 6), torch.randn(2, 6), torch.randn(6, 2)


def _alpha_keys_are_facts(folder):
    weight, a, b = _factors()
    save_file({"blocks.0.q.weight": weight}, folder / "base.safetensors")
    lora = {"q.lora_A.weight": a, "q.lora_B.weight": b, "q.alpha": torch.tensor(8.0)}
    save_file({f"blocks.0.{n}": tensor for n, tensor in lora.items()}, folder / "lora.safetensors")
    out = folder / "out.safetensors"
    merge(folder / "base.safetensors", [folder / "lora.safetensors"], out)
    assert load_file(out).keys() == {"blocks.0.q.weight"}
    assert torch.equal(load_file(out)["blocks.0.q.weight"], weight + (b @ a) * 4)


def _alpha_in_the_header_is_not_passed_over(folder):
    weight, a, b = _factors()
    save_file({"q.weight": weight}, folder / "base.safetensors")
    header = {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 8}'}
    lora = {"transformer.q.lora_A.weight": a, "transformer.q.lora_B.weight": b}
    save_file(lora, folder / "lora.safetensors", metadata=header)
    with pytest.raises(InputError, match="LoRA of diffusers"):
        merge(
            folder / "base.safetensors",
            [folder / "lora.safetensors"],
            folder / "out.safetensors",
            alpha=2,
        )


REPORTS = [
    Report(
        "Lightning-AI/litgpt",
        357,
        "with fewer query groups than heads, key and value were cut as if they were as large",
        "unequal blocks are merged as litgpt's fixed layer does",
        _blocks_are_not_cut_into_equal_thirds,
    ),
    Report(
        "Lightning-AI/litgpt",
        891,
        "updates of query and value went to rows of other heads of an interleaved weight",
        "rows that lie group by group get their own update, and the key's rows stay",
        _rows_lie_group_by_group,
    ),
    Report(
        "huggingface/diffusers",
        14088,
        "a file with .alpha keys beside lora_A and lora_B was rejected for these keys",
        "alpha is read from the file, and is no tensor of the result",
        _alpha_keys_are_facts,
    ),
    Report(
        "Comfy-Org/ComfyUI",
        12191,
        "alpha in the header of a diffusers file was not looked at: scaling 1 without a word",
        "such a file is refused by name until its header is read",
        _alpha_in_the_header_is_not_passed_over,
    ),
]
