"""Probes of a decoder that takes a past: padded on the left, as texts of one batch are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.records import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lora_export.models.generation.cached_decoder import CachedDecoder
    from lora_export.records import InputSpec

    Probe = dict[str, NDArray[Any]]

# Prompts, steps, and a longer text behind a past; none of the sizes is one that is traced.
SIZES = (
    {"batch": 3, "sequence": 7, "past": 0},
    {"batch": 3, "sequence": 1, "past": 9},
    {"batch": 1, "sequence": 4, "past": 6},
)


def decoding_probes(source: CachedDecoder, seed: int, tokens: Sequence[int] = ()) -> list[Probe]:
    """Seeded probes for a graph with keys and values: with an empty past, and with one.

    Keys and values are standard normal. Every second id is one of `tokens`, if any.

    Returns:
        one dict a probe: input name -> array of the declared dtype.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    probes = [_probe(source.inputs, sizes, random) for sizes in SIZES]
    for probe in probes:
        if tokens and max(tokens) < (source.inputs[0].high or 0):
            places = probe["input_ids"][..., ::2]
            places[...] = np.resize(np.asarray(tokens), places.shape)
    return probes


def _probe(specs: Sequence[InputSpec], sizes: dict[str, int], random: np.random.Generator) -> Probe:
    import numpy as np

    batch, width = sizes["batch"], sizes["past"] + sizes["sequence"]
    # Only the past is padded: a token that sees nothing, not even itself, has no right answer, and
    # some models give NaN for it. Padded prompts are generated from; see generation.
    padding = random.permutation(batch)[:, None] if sizes["past"] else np.zeros((batch, 1))
    mask = (np.arange(width) >= padding).astype(np.int64)
    given = {"attention_mask": mask, "position_ids": positions_of(mask)[:, sizes["past"] :]}
    probe: Probe = {}
    for spec in specs:
        shape = [size_of(dim, sizes) for dim in spec.dims]
        if spec.name in given:
            probe[spec.name] = given[spec.name]
        elif spec.name == "input_ids":
            probe[spec.name] = random.integers(0, spec.high or 2, shape)
        else:
            probe[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    return probe


def positions_of(mask: NDArray[Any]) -> NDArray[Any]:
    """What transformers' generate gives as position_ids: real tokens counted from 0."""
    import numpy as np

    counted: NDArray[Any] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return counted
