"""What people found in the folders that their training left behind."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lora_export.api import inspect, merge, verify
from lora_export.errors import InputError, VerificationError
from public_reports.report import Report

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


def _trained(folder, model, targets):
    """Base and adapter in `folder`; the unmerged model with every trainable parameter drawn."""
    from peft import LoraConfig, get_peft_model

    model.save_pretrained(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=targets)
    adapted = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "projector" in name:
            parameter.requires_grad = True
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    adapted.save_pretrained(folder / "lora")
    return adapted.eval()


def _llama(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0))
    return _trained(folder, model, ["q_proj", "v_proj"])


def _llava(folder):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    torch.manual_seed(0)
    vision = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    config = LlavaConfig(
        text_config=LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0),
        vision_config=CLIPVisionConfig(**vision, image_size=16, patch_size=8),
        image_token_index=59,
        image_seq_length=4,
    )
    adapted = _trained(folder, Llava(config), r".*language_model.*\.(q_proj|v_proj)")
    beside = {k: v.detach() for k, v in adapted.named_parameters() if "projector" in k}
    torch.save(beside, folder / "lora" / "non_lora_trainables.bin")
    return adapted


def _logits(model, **more):
    ids = torch.arange(2, 20).reshape(2, 9)
    if more:
        ids[:, 1:5] = 59
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits


def _merged(folder, name="lora"):
    from transformers import AutoModelForCausalLM

    merge(folder / "base", [folder / name], folder / "merged")
    return AutoModelForCausalLM.from_pretrained(folder / "merged")


def _a_projector_trained_in_full_is_merged(folder):
    from transformers import AutoModelForImageTextToText

    adapted = _llava(folder)
    merge(folder / "base", [folder / "lora"], folder / "merged")
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    model = AutoModelForImageTextToText.from_pretrained(folder / "merged")
    wanted = _logits(adapted, pixel_values=image)
    assert (_logits(model, pixel_values=image) - wanted).abs().max() < 1e-5
    path = folder / "lora" / "non_lora_trainables.bin"
    path.rename(folder / "away")
    merge(folder / "base", [folder / "lora"], folder / "without")
    model = AutoModelForImageTextToText.from_pretrained(folder / "without")
    assert (_logits(model, pixel_values=image) - wanted).abs().max() > 1e-2


def _a_merge_without_the_projector_is_found_out(folder):
    _llava(folder)
    lora = folder / "lora"
    [beside] = inspect(lora).facts["found"]["beside"]
    assert (beside["file"], beside["tensors"]) == ("non_lora_trainables.bin", 4)
    (lora / "non_lora_trainables.bin").rename(folder / "away")
    merge(folder / "base", [lora], folder / "merged")
    (folder / "merged" / "lora_export.json").unlink()
    (folder / "away").rename(lora / "non_lora_trainables.bin")
    with pytest.raises(VerificationError, match="multi_modal_pr"):
        verify(folder / "merged", base=folder / "base", adapters=[lora])


def _a_state_dict_of_the_whole_peft_model_is_read(folder):
    adapted = _llama(folder)
    (folder / "lora" / "adapter_model.safetensors").unlink()
    torch.save(adapted.state_dict(), folder / "lora" / "pytorch_model.bin")
    assert torch.equal(_logits(_merged(folder)), _logits(adapted.merge_and_unload()))


def _an_adapter_in_shards_is_read(folder):
    from huggingface_hub import save_torch_state_dict

    adapted = _llama(folder)
    lora = folder / "lora"
    weights = load_file(lora / "adapter_model.safetensors")
    (lora / "adapter_model.safetensors").unlink()
    pattern = "adapter_model{suffix}.safetensors"
    save_torch_state_dict(weights, lora, filename_pattern=pattern, max_shard_size=200)
    shards = sorted(path.name for path in lora.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(_logits(_merged(folder)), _logits(adapted.merge_and_unload()))
    (lora / shards[0]).unlink()
    with pytest.raises(InputError, match=shards[0]):
        merge(folder / "base", [lora], dry_run=True)


def _pieces_of_a_distributed_checkpoint_are_joined_by_the_command_named(folder):
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    adapted = _llama(folder)
    lora = folder / "lora"
    weights = load_file(lora / "adapter_model.safetensors")
    (lora / "adapter_model.safetensors").unlink()
    save(weights, checkpoint_id=lora / "pytorch_model_fsdp_0", no_dist=True)
    with pytest.raises(InputError) as caught:
        merge(folder / "base", [lora], dry_run=True)
    assert f"accelerate merge-weights {lora / 'pytorch_model_fsdp_0'} OUT" in str(caught.value)
    dcp_to_torch_save(lora / "pytorch_model_fsdp_0", lora / "joined.pt")
    assert torch.equal(_logits(_merged(folder)), _logits(adapted.merge_and_unload()))


_NOT_COPIED = "weights under another name than PEFT's could not be loaded from their folder"

REPORTS = [
    Report(
        "haotian-liu/LLaVA",
        1592,
        "after LoRA there was non_lora_trainables.bin, and the merge script missed the projector",
        "the projector in that file takes the base's place",
        _a_projector_trained_in_full_is_merged,
    ),
    Report(
        "haotian-liu/LLaVA",
        808,
        "whether the projector was trained could not be seen in the adapter's folder",
        "inspect lists the file, and a merge without it is found out",
        _a_merge_without_the_projector_is_found_out,
    ),
    Report(
        "huggingface/trl",
        2707,
        _NOT_COPIED,
        "the only weight file beside adapter_config.json is the adapter's",
        _a_state_dict_of_the_whole_peft_model_is_read,
    ),
    Report(
        "huggingface/peft",
        2699,
        _NOT_COPIED,
        "shards and their index are one adapter",
        _an_adapter_in_shards_is_read,
    ),
    Report(
        "huggingface/accelerate",
        3732,
        _NOT_COPIED,
        "pieces of FSDP are told with the command that joins them, and its result is read",
        _pieces_of_a_distributed_checkpoint_are_joined_by_the_command_named,
    ),
]
