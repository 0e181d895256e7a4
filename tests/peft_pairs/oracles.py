"""What PEFT makes of a pair, and what this package makes of it, both in this process."""

import json
import warnings

import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.execution.arithmetic import matrix_of
from lora_export.execution.full_tensors import refuse_unusable
from lora_export.execution.rows import Merge, read_rows
from lora_export.planning.request import make_request, plan_request
from peft_pairs.changes import factors
from peft_pairs.networks import network


def write(pair, folder):
    """The base file and the adapter's folder."""
    lora = folder / "lora"
    lora.mkdir(exist_ok=True)
    base = folder / f"{pair.dtype}-{pair.linear}.safetensors"
    if not base.exists():
        save_file(network(pair.dtype, linear=pair.linear).state_dict(), base)
    save_file(pair.tensors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps(pair.config))
    return base, lora


def adapter_name(pair):
    """The name that every factor's key holds, which PEFT must be told; "default" where none has."""
    return "other" if all(".other" in key for key in factors(pair)) else "default"


def by_peft(pair, lora):
    """(the merged state dict or None where PEFT raises, its error or the keys that it ignored)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = PEFT_TYPE_TO_CONFIG_MAPPING[pair.config["peft_type"]]
            config = kind.from_pretrained(lora)
            name, file = adapter_name(pair), lora / "adapter_model.safetensors"
            base = network(pair.dtype, linear=pair.linear)
            model = get_peft_model(base, config, adapter_name=name)
            found = set_peft_model_state_dict(model, load_file(file), adapter_name=name)
            merged = model.merge_and_unload().state_dict()
        except Exception as error:  # noqa: BLE001 - whatever a library raises on a broken pair
            return None, str(error)
    return merged, str(found.unexpected_keys)


def by_us(base, lora, **settings):
    """The merged tensors, without the files that a merge writes around them."""
    plan = plan_request(make_request(base, [lora], settings))
    refuse_unusable(plan)
    return {step.out.name: _tensor(step, plan.recipe) for step in plan.steps()}


def _tensor(step, recipe):
    dtype = torch_dtype(step.out.dtype)
    if not step.deltas:
        return read_tensor(step.source).to(dtype)
    height = matrix_of(step)[0]
    merge = Merge(step, recipe, 1)
    rows = merge.rows(read_rows(step, 0, height).to(dtype), 0, height)
    return rows.reshape(step.out.shape)


def differing(ours, theirs):
    """The names whose tensors are not the same bits."""
    names = sorted({*ours, *theirs})
    return [
        name
        for name in names
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or not torch.equal(ours[name], theirs[name])
    ]
