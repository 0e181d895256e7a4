"""Mistakes that leave an update out, or give it a factor."""

from __future__ import annotations

import torch

from foreign_merges.making import (
    ALL,
    Mistake,
    added,
    combined,
    edited,
    on_other_base,
    saved,
    without,
)
from foreign_merges.places import ALPHA, RANK, Place, scaled

V1 = "model.layers.1.self_attn.v_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OF_FACTORS: dict[str, Mistake] = {
    "nothing merged, in bfloat16": Mistake(
        saved(Place.load), "not-merged", "no module was merged", ALL, dtype="bfloat16"
    ),
    "twice, in bfloat16": Mistake(
        combined("plain", "plain"), "merged-twice", "were merged twice", ALL, dtype="bfloat16"
    ),
    "half, in float16": Mistake(
        saved(lambda place: scaled(place.peft(), 0.5)),
        "wrong-factor",
        "hold 0.5 of",
        ALL,
        dtype="float16",
    ),
    "another adapter, in bfloat16": Mistake(
        combined("other"), "other-adapter", "low-rank change", ALL, dtype="bfloat16"
    ),
    "one module left out, in bfloat16": Mistake(
        without(f"{V1}.weight"), "not-merged", "1 of 6 modules was", [V1], dtype="bfloat16"
    ),
    "an instruct model as base, in bfloat16": Mistake(
        on_other_base(0.2), "other-base", "another base: 10 of 15", 10, dtype="bfloat16"
    ),
    "nothing merged": Mistake(saved(Place.load), "not-merged", "no module was merged", ALL),
    "unloaded": Mistake(
        saved(lambda place: place.peft().unload()), "not-merged", "no module was merged", ALL
    ),
    "one module left out": Mistake(
        without(f"{V1}.weight"), "not-merged", "1 of 6 modules was not merged", [V1]
    ),
    "a layer left out": Mistake(
        without(*(f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv")),
        "not-merged",
        "3 of 6 modules were not merged",
        [f"model.layers.0.self_attn.{n}_proj" for n in "kqv"],
    ),
    "twice": Mistake(
        combined("plain", "plain"), "merged-twice", "all 6 modules were merged twice", ALL
    ),
    "three times": Mistake(
        combined("plain", "plain", "plain"), "merged-repeatedly", "were merged three times", ALL
    ),
    "subtracted": Mistake(
        saved(lambda place: scaled(place.peft(), -1)), "subtracted", "with the wrong sign", ALL
    ),
    "subtracted by hand": Mistake(added(torch.neg), "subtracted", "with the wrong sign", ALL),
    "half": Mistake(
        saved(lambda place: scaled(place.peft(), 0.5)), "wrong-factor", "hold 0.5 of the", ALL
    ),
    "a factor of no rule": Mistake(
        saved(lambda place: scaled(place.peft(), 1.3)), "wrong-factor", "hold 1.3 times the", ALL
    ),
    "rslora ignored": Mistake(
        edited(use_rslora=False),
        "rslora-ignored",
        "where rslora asks alpha/sqrt(r)",
        ALL,
        adapter="rslora",
    ),
    "rslora assumed": Mistake(
        edited(use_rslora=True), "rslora-assumed", "rslora's scaling, in place", ALL
    ),
    "rslora assumed, of two ranks": Mistake(
        edited(use_rslora=True),
        "rslora-assumed",
        "hold 1.41 to 2.83 times the update",
        ALL,
        adapter="ranks",
    ),
    "alpha ignored": Mistake(
        edited(lora_alpha=RANK), "alpha-ignored", "as with lora_alpha ignored (scaling 1)", ALL
    ),
    "alpha ignored, of two ranks": Mistake(
        edited(lora_alpha=RANK, alpha_pattern={"k_proj": 2}),
        "alpha-ignored",
        "as with lora_alpha ignored",
        ALL,
        adapter="ranks",
    ),
    "not divided by the rank": Mistake(
        saved(lambda place: scaled(place.peft(), RANK)),
        "rank-ignored",
        "not divided by the rank",
        ALL,
    ),
    "upside down": Mistake(
        saved(lambda place: scaled(place.peft(), (RANK / ALPHA) ** 2)),
        "scaling-inverted",
        "as with r/alpha",
        ALL,
    ),
    "weight twice": Mistake(
        saved(lambda place: scaled(place.peft(), 0.3**2)),
        "weight-twice",
        "as with --weight 0.3 applied twice",
        ALL,
        options={"weight": [0.3]},
    ),
    "weight ignored": Mistake(
        saved(Place.merge),
        "weight-ignored",
        "as with --weight 0.7 left out",
        ALL,
        options={"weight": [0.7]},
    ),
}
