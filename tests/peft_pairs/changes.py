"""What happens to a pair after training: each change takes (generator, pair) and changes it."""

import torch

from peft_pairs.pairs import PREFIX

STEMS = (".lora_", ".hada_", ".lokr_", ".vera_lambda", ".ia3_l")


def factors(pair):
    """The keys of factors, without a projection that all share."""
    return [key for key in pair.tensors if any(stem in key for stem in STEMS)]


def _module(key):
    place = min(found for stem in STEMS if (found := key.find(stem)) > 0)
    return key[:place]


def drop_key(draw, pair):
    """With its copy, which PEFT writes of a trained bias in modules_to_save."""
    chosen = draw.choice(list(pair.tensors)).replace(".modules_to_save", "")
    for key in [k for k in pair.tensors if k.replace(".modules_to_save", "") == chosen]:
        del pair.tensors[key]


def drop_module(draw, pair):
    module = _module(draw.choice(factors(pair)))
    for key in [key for key in pair.tensors if key.startswith(f"{module}.")]:
        del pair.tensors[key]


def _moved(pair, old, new):
    pair.tensors = {
        new + key.removeprefix(old) if key.startswith(f"{old}.") else key: tensor
        for key, tensor in pair.tensors.items()
    }


def rename_module(draw, pair):
    names = ["model.layers.0.up", "model.layers.1.out", "model.layers.1.up", "model.layers.2.up",
             "model.norm", "head", "model.emb", "conv", "elsewhere"]  # fmt: skip
    _moved(pair, _module(draw.choice(factors(pair))), PREFIX + draw.choice(names))


def name_the_adapter(draw, pair):
    chosen = factors(pair)
    if draw.random() < 0.5:
        chosen = draw.sample(chosen, 1)
    name = draw.choice(["default", "other"])
    for key in chosen:
        stem, dot, leaf = key.rpartition(".")
        if "lora_magnitude" in key:  # saved without its last part, or with it
            stem, dot, leaf = key.removesuffix(".weight"), ".", "weight"
        new = f"{stem}.{name}{dot}{leaf}" if leaf in ("weight", "bias") else f"{key}.{name}"
        pair.tensors[new] = pair.tensors.pop(key)


def cast(draw, pair):
    dtype = draw.choice([torch.float64, torch.float16, torch.bfloat16, torch.float32])
    keys = list(pair.tensors)
    for key in keys if draw.random() < 0.5 else draw.sample(keys, 1):
        wide = pair.tensors[key].double() * 1.0000001
        pair.tensors[key] = wide.to(dtype)


def reshape(draw, pair):
    key = draw.choice(list(pair.tensors))
    tensor = pair.tensors[key]
    cut = tensor[: max(1, len(tensor) - 1)].clone()
    pair.tensors[key] = tensor.T.contiguous() if draw.random() < 0.5 and tensor.dim() == 2 else cut


def damage(draw, pair):
    tensor = pair.tensors[draw.choice(list(pair.tensors))]
    tensor.view(-1)[0] = draw.choice([float("nan"), float("inf")])


SHAPES = {
    "head.weight": (3, 6), "head.bias": (3,), "x.head.bias": (3,), "model.norm.weight": (6,),
    "model.norm.bias": (6,), "model.layers.0.norm.weight": (6,), "model.layers.0.qkv.bias": (10,),
    "model.layers.0.qkv.base_layer.bias": (10,), "model.layers.1.up.weight": (8, 6),
    "model.layers.1.up.base_layer.weight": (8, 6), "model.layers.1.up.base_layer.bias": (8,),
    "head.modules_to_save.weight": (3, 6), "head.modules_to_save.default.bias": (3,),
    "model.norm.modules_to_save.other.bias": (6,), "model.emb.weight": (9, 6),
    "model.layers.0.out.lora_C.weight": (2, 6), "buffer": (4,), "conv.bias": (3,),
    "norm.weight": (6,), "layers.0.norm.bias": (6,), "head.original_module.bias": (3,),
}  # fmt: skip


def add_key(draw, pair):
    name, shape = draw.choice(list(SHAPES.items()))
    prefix = PREFIX if draw.random() < 0.9 else ""
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    pair.tensors[prefix + name] = torch.randn(shape, generator=generator)


MEMBERS = {
    "target_modules": [
        [], "all-linear", "qkv", ["qkv"], ["up"], ["out", "up"], ["layers.0.qkv"],
        ["model.layers.1.up", "emb"], r".*layers\.0\..*", ".*(qkv|up)", r"model\.(emb|layers.*)",
        ["head", "qkv"], ["v"], ["qkv", "out", "up", "emb", "conv", "point"],
    ],
    "exclude_modules": [["qkv"], "qkv", r".*\.1\..*", ["layers.0.up", "head"], []],
    "layers_to_transform": [0, [1], [0, 1], [7], []],
    "layers_pattern": ["layers", ["blocks", "layers"], "h", None],
    "modules_to_save": [None, [], ["head"], ["norm"], ["qkv"], ["elsewhere"], ["conv", "head"]],
    "bias": ["none", "all", "lora_only"],
    "r": [1, 2, 3, 5],
    "lora_alpha": [1, 2, 16, 0],
    "alpha": [1, 2, 16],
    "rank_pattern": [{}, {"qkv": 2}, {".*": 1}],
    "alpha_pattern": [{}, {"qkv": 9}, {r"layers\.\d\..*": 3}, {".*": 2}],
    "use_rslora": [True, False],
    "use_dora": [True, False],
    "lora_bias": [True, False],
    "fan_in_fan_out": [True, False],
    "init_lora_weights": [True, False, "gaussian", "mica", "MiCA", "pissa", "orthogonal", "new"],
    "use_qalora": [True],
    "alora_invocation_tokens": [[1, 2]],
    "trainable_token_indices": [[1, 2]],
    "target_parameters": [["layers.0.up.weight"], []],
    "feedforward_modules": [[], ["up"], ["qkv"], ".*up"],
    "save_projection": [True, False],
    "projection_prng_key": [3],
    "init_r": [1, 2, 5],
    "peft_type": ["LORA", "ADALORA", "LOHA", "LOKR", "VERA", "IA3", "OFT"],
    "peft_version": ["0.9.0", None],
}  # fmt: skip


def set_member(draw, pair):
    known = [key for key in MEMBERS if key in pair.config]
    key = draw.choice(["target_modules", *known])
    pair.config[key] = draw.choice(MEMBERS[key])


def remove_member(draw, pair):
    known = [key for key in MEMBERS if key in pair.config and key != "target_modules"]
    pair.config.pop(draw.choice(known))


CHANGES = (
    drop_key, drop_module, rename_module, name_the_adapter, cast, cast, reshape, damage, add_key,
    add_key, add_key, set_member, set_member, set_member, set_member, remove_member,
)  # fmt: skip


OF_FACTORS = (drop_module, rename_module, name_the_adapter)


def change(draw, pair):
    """One change, or two."""
    for _ in range(draw.choice([1, 1, 1, 2])):
        one = draw.choice(CHANGES)
        if pair.tensors and (factors(pair) or one not in OF_FACTORS):
            one(draw, pair)
            pair.changes.append(one.__name__)
