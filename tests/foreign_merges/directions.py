"""Mistakes that add something else than the update."""

from __future__ import annotations

from foreign_merges.making import ALL, Mistake, added, combined, noisy, saved, swapped
from foreign_merges.places import changed

V1 = "model.layers.1.self_attn.v_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OF_DIRECTIONS: dict[str, Mistake] = {
    "transposed": Mistake(
        added(lambda update: update.T), "transposed", "with the update transposed", ALL
    ),
    "transposed, stored (in, out)": Mistake(
        added(lambda update: update.T if update.shape[0] == update.shape[1] else update),
        "transposed",
        "2 of 4 modules were merged with the update transposed",
        [f"transformer.h.{n}.attn.c_proj" for n in range(2)],
        base="gpt2",
        adapter="attention",
    ),
    "query and key swapped": Mistake(
        swapped, "other-module", "4 of 6 modules were merged with the update of another module", 4
    ),
    "another adapter": Mistake(
        combined("other"), "other-adapter", "a low-rank change that is not this adapter's", ALL
    ),
    "another adapter of another rank": Mistake(
        combined("rank 4"), "other-adapter", "low-rank change", ALL
    ),
    "something else": Mistake(
        saved(lambda place: changed(place.load(), noisy, "q_proj.weight")),
        "not-merged",
        "4 of 6",
        4,
    ),
    "changed by training": Mistake(
        saved(
            lambda place: changed(
                changed(place.load(), noisy, "q_proj.weight"), noisy, "k_proj.weight"
            )
        ),
        "other-change",
        "4 of 6 modules were changed by something else",
        4,
    ),
    "a second adapter on top": Mistake(
        combined("plain", "rank 4"), "second-adapter", "the update and another change of low", ALL
    ),
}
