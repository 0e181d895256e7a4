"""Measures what rounding costs a graph with keys and values, where it is used step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.verification.model.loss import measure
from lora_export.verification.runtime.generation import (
    Decoder,
    Prompt,
    follow,
    generate,
    logits_of,
    make_prompts,
    new_tokens,
    room,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.generation.cached_decoder import CachedDecoder
    from lora_export.verification.model.loss import Loss
    from lora_export.verification.runtime.sessions import Opener

    Array = NDArray[Any]

PROMPT, STEPS = "logits of a prompt", "logits of each step with a past"
"""The names of what is measured, for the report."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt, and the tokens that the merged model generates after it."""

    prompt: Prompt
    tokens: Array
    """int64 (batch, tokens)."""

    def run(self, model: nn.Module, *, positioned: bool) -> dict[str, Array]:
        """Return the logits of a plain model, which takes the whole text at once."""
        whole = self.prompt.longer(self.tokens.shape[1], self.tokens)
        return self.parts(logits_of(model, whole.ids, whole.mask, positioned=positioned))

    def parts(self, logits: Array) -> dict[str, Array]:
        """Divide the logits of the whole text into those of the prompt and those of the steps."""
        width = self.prompt.width
        # The logits of the prompt's last token choose the first new one, those of the last none.
        return self.named(logits[:, :width], logits[:, width - 1 : -1])

    def named(self, first: Array, steps: Array) -> dict[str, Array]:
        """Return the logits by name; of the prompt those of real tokens, without padding."""
        return {PROMPT: first[self.prompt.mask.astype(bool)], STEPS: steps}


def measure_generation(
    path: Path,
    source: CachedDecoder,
    open_merged: Callable[[], nn.Module],
    open_base: Callable[[], nn.Module],
    *,
    seed: int,
    opener: Opener,
) -> tuple[Loss, ...]:
    """Measure how far the graph's logits are from those of the merged model.

    The graph goes through the tokens that the merged model generates: the prompt in one step with
    an empty past, then one token a step, with the keys and values that it gave itself. The
    reference takes the whole text at once.

    Args:
        path: the lowered ONNX file.
        source: the network that the file was exported of.
        open_merged: opens the merged model, as transformers builds it.
        open_base: opens the base. Only one of both is in memory at a time.
        seed: of the prompts.
        opener: opens the session on the file.

    Returns:
        the loss of the prompt's logits, and of those of the steps. Its `agree` counts the tokens
        that the graph chooses as `generate` does.

    Raises:
        VerificationError: the runtime does not run the file.
        UsageError: the merged model does not generate.
    """
    decoder = Decoder(path, source, opener)
    texts, expected = _references(open_merged(), source, seed, positioned=decoder.positioned)
    found = [text.named(*follow(decoder, text.prompt, text.tokens)) for text in texts]
    bare = open_base()
    base = [text.run(bare, positioned=decoder.positioned) for text in texts]
    return measure(expected, found, base)


def _references(
    model: nn.Module, source: CachedDecoder, seed: int, *, positioned: bool
) -> tuple[list[_Text], list[dict[str, Array]]]:
    """Return texts that the merged model generates, and its logits on them."""
    count = new_tokens(model, room(source))
    texts = []
    for prompt in make_prompts(source, seed):
        tokens = generate(model, {"input_ids": prompt.ids, "attention_mask": prompt.mask}, count)
        texts.append(_Text(prompt, tokens[:, prompt.width :]))
    return texts, [text.run(model, positioned=positioned) for text in texts]
