"""One row a dialect: an adapter as that dialect writes it, and what must be read from it."""

CASES = {
    # name: (tensors by name -> shape, {module: roles}, full tensors, adapter_config.json)
    "loralib": (
        {
            "h.0.attn.lora_A": (2, 8),
            "h.0.attn.lora_B": (12, 2),
            "lora_A": (2, 4),  # the root module itself is adapted
            "lora_B": (4, 2),
            "h.0.attn.bias": (12,),
            "flora_net.weight": (3, 3),  # "lora_" is a substring here, not a factor
            "lora_A.weight": (3, 3),
        },
        {"h.0.attn": {"A", "B"}, "": {"A", "B"}},
        {"h.0.attn.bias", "flora_net.weight", "lora_A.weight"},
        {},
    ),
    "litgpt": (
        {
            "transformer.h.0.attn.qkv.lora_A": (4, 8),
            "transformer.h.0.attn.qkv.lora_B": (12, 2),
            "transformer.h.0.mlp.fc_1.lora_A": (2, 8),
            "transformer.h.0.mlp.fc_1.lora_B": (12, 2),
            "transformer.h.0.attn.qkv.bias": (16,),
        },
        {"transformer.h.0.attn.qkv": {"A", "B"}, "transformer.h.0.mlp.fc_1": {"A", "B"}},
        {"transformer.h.0.attn.qkv.bias"},
        {},
    ),
    "lora-with-alpha": (
        {
            "h.0.q.lora_A.weight": (2, 8),
            "h.0.q.lora_B.weight": (12, 2),
            "h.0.q.alpha": (),
            "h.0.k.lora_A": (2, 8),
            "h.0.k.lora_B": (12, 2),
            "h.0.k.bias": (12,),
            "h.0.act.alpha": (),  # no factors there: a parameter of an activation
        },
        {"h.0.q": {"A", "B"}, "h.0.k": {"A", "B"}},
        {"h.0.k.bias", "h.0.act.alpha"},
        {},
    ),
    "peft": (
        {
            "base_model.model.h.0.q.lora_A.weight": (2, 8),
            "base_model.model.h.0.q.lora_B.weight": (12, 2),
            "base_model.model.h.0.q.base_layer.bias": (12,),
            "base_model.model.emb.token_adapter.trainable_tokens_delta": (2, 8),
            "base_model.model.emb.token_adapter.base_layer.weight": (30, 8),
            "base_model.model.classifier.modules_to_save.default.dense.weight": (3, 8),
            "base_model.model.flora_A.weight": (3, 3),
        },
        {"h.0.q": {"A", "B"}, "emb": {"rows"}},
        {"h.0.q.bias", "emb.weight", "classifier.dense.weight", "flora_A.weight"},
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "trainable_token_indices": [4, 7]},
    ),
}
