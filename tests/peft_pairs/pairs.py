"""Random pairs of a PEFT configuration and an adapter file, right ones and changed ones.

A pair is a configuration as PEFT writes it and the tensors by their keys. Everything is drawn from
one generator, so a seed names the pair.
"""

import warnings
from dataclasses import dataclass, field

import peft
import torch
from peft import get_peft_model, get_peft_model_state_dict

from peft_pairs.networks import network

PREFIX = "base_model.model."
LINEAR = ("qkv", "out", "up")


@dataclass
class Pair:
    """linear: which network; dtype: of the base. changes: what was changed, none of a right one."""

    config: dict
    tensors: dict
    dtype: str
    linear: bool
    changes: list = field(default_factory=list)


def right_pair(draw):
    """As PEFT saves it after a training that has changed every trained tensor."""
    pair = None
    while pair is None:
        pair = _trained(draw)
    return pair


def _trained(draw):
    """None where PEFT has no layer for what was drawn, MiCA in float64 for example."""
    linear = draw.random() < 0.8
    dtype = draw.choice(["F32", "F32", "BF16", "F16", "F64"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of configurations, on what they leave out
        config = CONFIGS[draw.choice(TYPES)](draw, linear)
        try:
            model = get_peft_model(network(dtype, linear=linear), config)
        except (TypeError, ValueError):
            return None
        _disturb(model, draw)
        tensors = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}
    found = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return Pair({**found, "inference_mode": True}, tensors, dtype, linear)


def _disturb(model, draw):
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    for key, parameter in model.named_parameters():
        if parameter.requires_grad or "ia3_l" in key:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            near_one = "magnitude" in key or "ia3_l" in key
            parameter.data = parameter * (1 + 0.1 * noise) if near_one else noise * 0.2


def _targets(draw, names, *, by_layer=True):
    """The ways to say which modules are adapted."""
    chosen = draw.sample(names, draw.randint(1, len(names)))
    inside = [name for name in chosen if name in LINEAR]
    way = draw.choice(["list", "list", "paths", "pattern", "excluded", "layers", "named layers"])
    if way == "list" or not inside:
        return {"target_modules": chosen}
    if way == "paths":
        return {"target_modules": [f"layers.{draw.randint(0, 1)}.{name}" for name in inside]}
    if way == "pattern":
        return {"target_modules": rf"(?!.*norm).*layers\.\d+\.({'|'.join(inside)})"}
    if way == "excluded" or not by_layer:
        return {"target_modules": chosen, "exclude_modules": [f"model.layers.1.{inside[0]}"]}
    names = {"layers_pattern": "layers"} if way == "named layers" else {}
    return {"target_modules": inside, "layers_to_transform": draw.choice([[0], [0, 1], 1]), **names}


def _patterns(draw, alpha):
    """Ranks and alphas of single modules."""
    ranks = {draw.choice([*LINEAR, "layers.0.qkv", r"layers\.1\..*"]): draw.randint(1, 4)}
    alphas = {draw.choice([*LINEAR, "emb", ".*p$", "layers.1.up"]): draw.choice([1, 2.5, 7])}
    return {
        "rank_pattern": ranks if draw.random() < 0.3 else {},
        alpha: alphas if draw.random() < 0.3 else {},
    }


def _saved(draw):
    """Modules that are trained whole."""
    return draw.choice([None, None, None, ["head"], ["norm"], ["layers.0.norm", "head"]])


def _lora(draw, linear):
    names = [*LINEAR, "emb", "conv", "point"] if linear else [*LINEAR, "emb"]
    dora = draw.random() < 0.2
    start = draw.choice([True, True, "gaussian", "mica"])
    start = True if dora and start == "mica" else start
    if start == "mica":
        names = [name for name in names if not name.startswith(("conv", "point"))]
    is_plain = start is True and not dora
    with_bias = is_plain and draw.random() < 0.15
    if with_bias:
        names = ["qkv", "up", "conv"] if linear else ["qkv", "up"]
    return peft.LoraConfig(
        r=draw.randint(1, 3),
        lora_alpha=draw.choice([1, 3, 4, 0.7]),
        use_rslora=draw.random() < 0.2,
        use_dora=dora,
        init_lora_weights=start,
        lora_bias=with_bias,
        bias=draw.choice(["none", "none", "none", "all", "lora_only"]),
        modules_to_save=_saved(draw),
        **_patterns(draw, "alpha_pattern"),
        **_targets(draw, names),
    )


def _adalora(draw, linear):
    del linear
    return peft.AdaLoraConfig(
        init_r=draw.randint(1, 4),
        lora_alpha=draw.choice([1, 5]),
        total_step=10,
        modules_to_save=_saved(draw),
        **_targets(draw, list(LINEAR)),
    )


def _lycoris(kind, **more):
    def config(draw, linear):
        names = [*LINEAR, "conv", "point"] if linear else ["out"]
        return kind(
            r=draw.randint(1, 4),
            alpha=draw.choice([1, 5]),
            modules_to_save=_saved(draw),
            use_effective_conv2d=draw.random() < 0.5,
            **{key: draw.choice(values) for key, values in more.items()},
            **_patterns(draw, "alpha_pattern"),
            **_targets(draw, names),
        )

    return config


def _vera(draw, linear):
    found = _targets(draw, list(LINEAR) if linear else ["qkv", "up"])
    found.pop("exclude_modules", None)
    return peft.VeraConfig(
        r=draw.randint(1, 4),
        modules_to_save=_saved(draw),
        projection_prng_key=draw.randint(0, 9),
        save_projection=draw.random() < 0.7,
        **found,
    )


def _ia3(draw, linear):
    names = [*LINEAR, "conv"] if linear else list(LINEAR)
    found = _targets(draw, names, by_layer=False)
    named = found["target_modules"]
    inside = [] if isinstance(named, str) else [one for one in named if one.endswith("up")]
    return peft.IA3Config(
        feedforward_modules=inside[: draw.randint(0, 1)], modules_to_save=_saved(draw), **found
    )


CONFIGS = {
    "LORA": _lora,
    "ADALORA": _adalora,
    "LOHA": _lycoris(peft.LoHaConfig),
    "LOKR": _lycoris(peft.LoKrConfig, decompose_both=[True, False], decompose_factor=[-1, 2]),
    "VERA": _vera,
    "IA3": _ia3,
}
TYPES = ["LORA"] * 6 + ["ADALORA", "LOHA", "LOKR", "VERA", "IA3"]
