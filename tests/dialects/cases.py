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
    "peft": (
        {
            "base_model.model.h.0.attn.lora_A.weight": (2, 8),
            "base_model.model.h.0.attn.lora_B.weight": (12, 2),
            "base_model.model.wte.lora_embedding_A": (2, 50),
            "base_model.model.wte.lora_embedding_B": (8, 2),
            "base_model.model.classifier.weight": (3, 8),
            "base_model.model.flora_A.weight": (3, 3),  # "lora_A" is a substring, not a factor
            "base_model.model.h.0.attn.bias": (12,),
        },
        {"h.0.attn": {"A", "B"}, "wte": {"A", "B"}},
        {"classifier.weight", "flora_A.weight", "h.0.attn.bias"},
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4},
    ),
}
