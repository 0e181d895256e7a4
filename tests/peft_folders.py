"""Bases and PEFT adapters on disk, and the unmerged model that PEFT itself makes of them."""

from copy import deepcopy

import torch

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": 60, "max_position_embeddings": 40,
}  # fmt: skip


def llama(*, tied=False, layers=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": layers, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied, pad_token_id=0))


def bert(name="BertForSequenceClassification"):
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.BertConfig(**SIZES))


def save(folder, model, config, *, auto=None, dtype=torch.float32, resize=None, save=None, **load):
    """Write base and adapter into `folder`; return a function that loads the unmerged model."""
    from peft import PeftModel, get_peft_model

    auto = auto or type(model)
    model.to(dtype).save_pretrained(folder / "base")

    def base():
        torch.manual_seed(3)
        found = auto.from_pretrained(folder / "base", dtype=dtype, **load)
        if resize:
            found.resize_token_embeddings(resize)
        return found

    adapted = get_peft_model(base(), deepcopy(config))  # which PEFT changes
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # In place: the factors of tied modules share their memory.
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    adapted.save_pretrained(folder / "lora", **(save or {}))
    return lambda: PeftModel.from_pretrained(base(), folder / "lora").eval()


def logits(model, vocabulary=60):
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(0, vocabulary, (2, 12), generator=draw)
    ids[:, ::3] = 1
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def reloaded(folder, auto, dtype=torch.float32):
    """The result as transformers loads it, in whose files nothing is missing."""
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model
