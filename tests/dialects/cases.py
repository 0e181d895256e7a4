"""One row a dialect: an adapter as that dialect writes it, and what must be read from it."""

CASES = {
    # name: (tensors by name -> shape, {module: roles}, full tensors)
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
    ),
}
