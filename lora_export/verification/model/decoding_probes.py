"""Makes probes of a decoder that takes a past; as in a batch of texts, padding is on the left."""

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

SIZES = (
    {"batch": 3, "sequence": 7, "past": 0},  # prompts
    {"batch": 3, "sequence": 1, "past": 9},  # a step of generation
    {"batch": 1, "sequence": 4, "past": 6},  # a further text after a past
)
"""The sizes of the probes; none of them is one that is traced."""


def decoding_probes(source: CachedDecoder, seed: int, tokens: Sequence[int] = ()) -> list[Probe]:
    """Make seeded probes for a graph with keys and values, without a past and with one.

    Keys and values are standard normal. Ids are below the declared bound. Every second id is one of
    `tokens`, if any: the rows of those are trained, and random ids would hardly meet them.

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
    # Only the past is padded. A padded token of a prompt attends to nothing, not even itself. No
    # output of it is right, and some models give NaN. runtime.generation proves padded prompts.
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
    """Return position_ids as transformers' `generate` makes them: real tokens counted from 0.

    mask: the attention mask, int64 (batch, tokens).

    Returns:
        int64 of the same shape; padding has position 0.
    """
    import numpy as np

    counted: NDArray[Any] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return counted
