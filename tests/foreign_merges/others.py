"""Mistakes in what no update changes: the base, its dtype, names, full tensors, files."""

from __future__ import annotations

import torch

from foreign_merges.making import (
    ALL,
    Mistake,
    added,
    combined,
    edited,
    in_eight_bits,
    in_four_bits,
    never_merged,
    noisy,
    on_other_base,
    on_quantised,
    renamed,
    resized,
    saved,
    spotted,
    tied_head,
    untied_head,
    with_config,
    with_file,
    without,
)
from foreign_merges.places import Place, changed, scaled

V1 = "model.layers.1.self_attn.v_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OF_OTHERS: dict[str, Mistake] = {
    "another base": Mistake(
        on_other_base(1.0), "other-base", "another base: all 15 tensors without", 15
    ),
    "an instruct model as base": Mistake(
        on_other_base(0.02), "other-base", "another base: all 15 tensors without", 15
    ),
    "one tensor of another base": Mistake(
        saved(lambda place: changed(place.merge(), noisy, "layers.1.mlp.up_proj.weight")),
        "tensor-changed",
        "1 of 15 tensors without an update differs",
        ["model.layers.1.mlp.up_proj.weight"],
    ),
    "elements of a merged weight": Mistake(
        saved(lambda place: changed(place.merge(), spotted, "layers.1.self_attn.v_proj.weight")),
        "single-elements",
        "1 of 6 modules differs from the merge in a few elements",
        [V1],
    ),
    "another base, not merged": Mistake(
        saved(lambda place: changed(place.load(), noisy)),
        "other-base",
        "another base: 10 of 15",
        10,
    ),
    "through float16": Mistake(
        saved(lambda place: place.merge().half().float()),
        "rounded-narrower",
        "were rounded to float16 before they were stored",
        16,
    ),
    "through bfloat16": Mistake(
        saved(
            lambda place: place.peft(place.load(dtype=torch.bfloat16)).merge_and_unload().float()
        ),
        "rounded-narrower",
        "were rounded to bfloat16",
        16,
    ),
    "a base in bfloat16": Mistake(
        saved(lambda place: place.peft(place.load(dtype=torch.bfloat16)).merge_and_unload()),
        "rounded-before",
        "all 6 modules were merged into a base that was rounded to bfloat16 before",
        ALL,
    ),
    "a base in bfloat16, by --dtype": Mistake(
        saved(lambda place: place.peft(place.load(dtype=torch.bfloat16)).merge_and_unload()),
        "rounded-before",
        "all 6 modules were merged into a base that was rounded to bfloat16 before",
        ALL,
        options={"dtype": "bfloat16"},
    ),
    "a base in float16, safely": Mistake(
        saved(
            lambda place: place.peft(place.load(dtype=torch.float16)).merge_and_unload(
                safe_merge=True
            )
        ),
        "rounded-before",
        "rounded to float16 before",
        ALL,
    ),
    "DoRA on a base in bfloat16": Mistake(
        saved(lambda place: place.peft(place.load(dtype=torch.bfloat16)).merge_and_unload()),
        "rounded-before",
        "rounded to bfloat16 before",
        ALL,
        adapter="dora",
    ),
    "adapted weights through float8": Mistake(
        saved(
            lambda place: changed(
                place.merge(), lambda t: t.to(torch.float8_e4m3fn).float(), "_proj.weight"
            )
        ),
        "rounded-narrower",
        "were rounded to float8_e4m3fn",
        14,
    ),
    "an update in bfloat16": Mistake(
        added(lambda update: update.bfloat16().float()),
        "update-rounded",
        "computed in bfloat16",
        ALL,
    ),
    "an update in float16": Mistake(
        added(lambda update: update.half().float()), "update-rounded", "computed in float16", ALL
    ),
    "a base of four bits": Mistake(on_quantised(in_four_bits), "quantised-base", "4-bit", 14),
    "a base of eight bits": Mistake(on_quantised(in_eight_bits), "quantised-base", "8-bit", 14),
    "a quantised merge": Mistake(
        saved(lambda place: changed(place.merge(), in_four_bits, "proj.weight")),
        "quantised-base",
        "4-bit",
        14,
    ),
    "all zeros": Mistake(
        saved(lambda place: changed(place.merge(), torch.zeros_like)),
        "zeros",
        "16 of 21 tensors are all zeros",
        16,
    ),
    "all NaN": Mistake(
        saved(lambda place: changed(place.merge(), lambda t: t * float("nan"))),
        "not-finite",
        "16 of 21 tensors are all NaN",
        16,
    ),
    "whole numbers": Mistake(
        renamed(str, lambda tensor: tensor.mul(1000).to(torch.int8)),
        "other-dtype",
        "all 21 tensors are stored in int8, where float32 is planned",
        21,
    ),
    "a head that was not copied": Mistake(
        without(HEAD),
        "full-tensor-not-copied",
        "1 full tensor has the values of the base",
        [HEAD],
        adapter="head",
    ),
    "token rows that were not written": Mistake(
        without(EMBED),
        "token-rows-not-written",
        "1 of 7 modules lacks the trained token rows",
        [EMBED.removesuffix(".weight")],
        adapter="tokens",
    ),
    "biases that were not copied": Mistake(
        without(*(f"model.layers.{n}.self_attn.{m}_proj.bias" for n in range(2) for m in "qkv")),
        "bias-not-copied",
        "6 trained biases have the values of the base",
        ALL,
        base="qwen",
        adapter="own biases",
    ),
    "one bias that was not copied": Mistake(
        without("model.layers.0.self_attn.q_proj.bias"),
        "bias-not-copied",
        "1 trained bias has",
        ["model.layers.0.self_attn.q_proj.bias"],
        base="qwen",
        adapter="biases",
    ),
    "DoRA as LoRA": Mistake(
        edited(without="magnitude", use_dora=False),
        "dora-as-lora",
        "DoRA's magnitude was ignored",
        ALL,
        adapter="dora",
    ),
    "DoRA twice": Mistake(
        combined("dora", "dora"), "merged-twice", "merged twice", ALL, adapter="dora"
    ),
    "DoRA not merged": Mistake(saved(Place.load), "not-merged", "no module", ALL, adapter="dora"),
    "one of two left out": Mistake(
        combined("plain"),
        "adapter-left-out",
        "lack the adapter llama float32 other",
        ALL,
        more=["other"],
    ),
    "one of two twice": Mistake(
        combined("plain", "other", "other"),
        "adapter-twice",
        "hold the adapter llama float32 other twice",
        ALL,
        more=["other"],
    ),
    "a head tied to the embedding": Mistake(
        tied_head, "tied-wrongly", "1 table has the values of model.embed_tokens.weight", [HEAD]
    ),
    "a tied head that is stored apart": Mistake(
        untied_head, "untied-wrongly", "1 tensor is stored apart", [HEAD], base="tied"
    ),
    "tables tied again, at half the scaling": Mistake(
        saved(lambda place: scaled(place.peft(), 0.5)),
        "tied-wrongly",
        "1 tensor is tied again, and no longer equal",
        [HEAD],
        base="tied",
        adapter="tables",
    ),
    "resized": Mistake(
        resized, "resized", "2 tensors are resized: 96x64, where 80x64", [HEAD, EMBED]
    ),
    "in float16": Mistake(
        saved(lambda place: place.merge().half()),
        "other-dtype",
        "all 21 tensors are stored in float16, where float32 is planned; the values are those",
        21,
    ),
    "in bfloat16, not merged": Mistake(
        saved(lambda place: place.load(dtype=torch.bfloat16)), "not-merged", "no module was", ALL
    ),
    "a prefix of DataParallel": Mistake(
        renamed(lambda name: f"module.{name}"), "renamed", "21 tensors are under other names", 21
    ),
    "a prefix of PEFT": Mistake(
        renamed(lambda name: f"base_model.model.{name}"),
        "renamed",
        "in place of lm_head.weight",
        21,
    ),
    "never merged": Mistake(never_merged, "factors-left", "12 factors of an adapter", 12),
    "a tensor too few": Mistake(
        renamed(lambda name: "x.weight" if name == "model.norm.weight" else name),
        "tensors-missing",
        "1 tensor is missing",
        ["model.norm.weight"],
    ),
    "an adapter's config left behind": Mistake(
        with_file("adapter_config.json"),
        "adapter-config-left",
        "loads this folder as an adapter",
        ["adapter_config.json"],
    ),
    "a stray index": Mistake(
        with_file("pytorch_model.bin.index.json", '{"weight_map": {}}'),
        "stray-weights",
        "1 weight file",
        ["pytorch_model.bin.index.json"],
    ),
    "another config": Mistake(
        with_config(rope_theta=1.0, rms_norm_eps=0.5),
        "config-changed",
        "rms_norm_eps",
        ["config.json"],
    ),
}
