"""Measures what rounding costs the two graphs of an encoder-decoder, used step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.model.loss import measure
from lora_export.verification.runtime.encoder_decoder import (
    PairRunner,
    answer,
    encoder_inputs,
    follow_answer,
    plain_logits,
)
from lora_export.verification.runtime.generation_loss import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.generation.cached_pair import CachedPair
    from lora_export.verification.model.loss import Loss
    from lora_export.verification.runtime.sessions import Opener

    Probe = Mapping[str, NDArray[Any]]


def measure_answers(
    folder: Path,
    pair: CachedPair,
    probes: Sequence[tuple[Probe, Probe]],
    open_merged: Callable[[], nn.Module],
    open_base: Callable[[], nn.Module],
    *,
    opener: Opener,
) -> tuple[Loss, ...]:
    """Measure how far the logits of each step are from those of the merged model.

    The graphs go through the tokens that the merged model generates, one a step, with the keys and
    values that they gave themselves. The reference takes all tokens at once.

    Args:
        folder: has both lowered files.
        pair: the networks that the files were exported of.
        probes: inputs of the encoder, each for the torch models and for the files; the decoder's
            ids are not used.
        open_merged: opens the merged model, as transformers builds it.
        open_base: opens the base. Only one of both is in memory at a time.
        opener: opens the sessions on both files.

    Raises:
        VerificationError: the runtime does not run a file.
        UsageError: the merged model does not generate.
    """
    runner = PairRunner(folder, pair, opener)
    feeds = [(encoder_inputs(plain), encoder_inputs(own)) for plain, own in probes]
    texts, expected = _references(open_merged(), pair, [plain for plain, _ in feeds])
    found = []
    for text, (_, own) in zip(texts, feeds, strict=True):
        runner.encode(own)
        found.append({STEPS: follow_answer(runner, text)})
    bare = open_base()
    base = [
        {STEPS: plain_logits(bare, plain, text)}
        for text, (plain, _) in zip(texts, feeds, strict=True)
    ]
    return measure(expected, found, base)


def _references(
    model: nn.Module, pair: CachedPair, feeds: Sequence[Probe]
) -> tuple[list[NDArray[Any]], list[dict[str, NDArray[Any]]]]:
    """Return the tokens that the merged model generates but the last, and its logits on them."""
    texts = [answer(model, pair, feed)[:, :-1] for feed in feeds]
    runs = [{STEPS: plain_logits(model, feed, t)} for feed, t in zip(feeds, texts, strict=True)]
    return texts, runs
