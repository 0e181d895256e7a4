"""What people saw with files of loralib."""

from __future__ import annotations

import loralib
import pytest
import torch
from safetensors.torch import load_file

from lora_export.api import merge
from lora_export.errors import InputError, UsageError
from public_reports.report import Report


def _network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(loralib.Linear(6, 5, r=2, lora_alpha=3), torch.nn.Linear(5, 4))
    torch.nn.init.normal_(network[0].lora_B)
    return network


def _files(folder, network):
    state = network.train().state_dict()
    torch.save({k: v for k, v in state.items() if "lora_" not in k}, folder / "base.pt")
    torch.save(loralib.lora_state_dict(network), folder / "lora.pt")
    return folder / "base.pt", [folder / "lora.pt"], folder / "out.safetensors"


def _eval_is_what_the_merge_equals(folder):
    network = _network()
    files = _files(folder, network)
    with pytest.raises(UsageError, match="alpha"):
        merge(*files)
    merge(*files, alpha=3)
    assert torch.equal(load_file(files[2])["0.weight"], network.eval()[0].weight)


def _weights_saved_after_eval_are_not_merged_again(folder):
    network = _network()
    files = _files(folder, network)
    torch.save(network.eval().state_dict(), files[0])
    with pytest.raises(InputError, match="already contain the update"):
        merge(*files, alpha=3)


REPORTS = [
    Report(
        "microsoft/LoRA",
        61,
        "model.eval() of an older version merged nothing, without an error",
        "the merge equals the network after eval(), and alpha is asked for",
        _eval_is_what_the_merge_equals,
    ),
    Report(
        "microsoft/LoRA",
        34,
        "whether eval() had merged the weights could not be seen in what was saved",
        "a base that holds factors is refused until its owner says that it is unmerged",
        _weights_saved_after_eval_are_not_merged_again,
    ),
]
