"""Proves a graph with keys and values by its use: it generates text, token by token.

The references are the logits on the whole text and the tokens of `generate`, both of the merged
model as transformers builds it. None of our code is in its forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.models.generation.caches import PAST, PRESENT
from lora_export.models.network.calling import call_model, user_code
from lora_export.models.network.quiet import quiet
from lora_export.records import Check
from lora_export.verification.model.decoding_probes import positions_of
from lora_export.verification.runtime.sessions import run_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.generation.cached_decoder import CachedDecoder
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.runtime.sessions import Opener

    Array = NDArray[Any]

NEW_TOKENS = 32
"""The number of tokens that are generated for a text, at most."""

FEWEST_TOKENS = 8
"""The number of tokens that a model of any size generates."""

QUICK = 1 << 29
"""Elements of a model that generates NEW_TOKENS: each token reads every weight. A larger one
generates fewer in proportion."""

PROMPTS = ((5,), (7, 3, 6))
"""The lengths of the texts: one text alone, and a batch with padding on the left."""

LOGITS = "logits"
"""The name of the output that is compared."""

_NAMED = 3
"""Wrong tokens in a check's detail."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts of a batch, padded on the left."""

    ids: Array
    """int64 (batch, width); padding is 0."""
    mask: Array
    """int64 (batch, width): 1 for a token, 0 for padding."""

    @property
    def width(self) -> int:
        """Return the number of tokens in the longest text."""
        return int(self.ids.shape[1])

    def longer(self, count: int, tokens: Array | None = None) -> Prompt:
        """Return the texts with `count` tokens more in the mask, and with `tokens`, if any, as ids.

        tokens: int64 (batch, count).
        """
        import numpy as np

        mask = np.pad(self.mask, ((0, 0), (0, count)), constant_values=1)
        ids = self.ids if tokens is None else np.concatenate([self.ids, tokens], axis=1)
        return Prompt(ids, mask)


@dataclass(frozen=True, slots=True)
class Text:
    """The logits and tokens that were generated for one prompt."""

    prompt_logits: tuple[Array, Array]
    """The plain model's and the graph's, of the prompt's real tokens: (real tokens, vocabulary)."""
    step_logits: tuple[Array, Array]
    """The plain model's and the graph's, for each new token: (batch, tokens, vocabulary)."""
    tokens: Array
    """The new tokens of the reference, int64 (batch, tokens)."""


def check_generation(
    path: Path,
    source: CachedDecoder,
    model: nn.Module,
    tolerance: Tolerance,
    *,
    seed: int,
    opener: Opener,
) -> tuple[Check, ...]:
    """Compare the graph's logits and tokens with those of the plain merged model.

    Args:
        path: the ONNX file.
        source: the network that the file was exported of.
        model: the merged one, as transformers builds it.
        tolerance: how far the logits may be apart.
        seed: of the prompts.
        opener: opens the session on the file.

    Returns:
        three checks: the prompt's own step, every step with a past, and the tokens.

    Raises:
        VerificationError: the runtime does not run the file.
        UsageError: the merged model does not generate.
    """
    decoder, count = Decoder(path, source, opener), new_tokens(model, room(source))
    texts = [_text(decoder, model, prompt, count) for prompt in make_prompts(source, seed)]
    return (
        near("prompt = plain model", tolerance, [text.prompt_logits for text in texts]),
        near("each step with a past = plain model", tolerance, [t.step_logits for t in texts]),
        same_tokens([(t.step_logits[1], t.tokens) for t in texts], allowed_logits(tolerance)),
    )


def _text(decoder: Decoder, model: nn.Module, prompt: Prompt, count: int) -> Text:
    feed = {"input_ids": prompt.ids, "attention_mask": prompt.mask}
    tokens = generate(model, feed, count)[:, prompt.width :]
    first, steps = follow(decoder, prompt, tokens)
    whole = prompt.longer(tokens.shape[1], tokens)
    plain = logits_of(model, whole.ids, whole.mask, positioned=decoder.positioned)
    real = prompt.mask.astype(bool)
    before = prompt.width - 1  # the logits of the prompt's last token choose the first new one
    return Text((plain[:, : prompt.width][real], first[real]), (plain[:, before:-1], steps), tokens)


def allowed_logits(tolerance: Tolerance) -> float:
    """Return how far two logits may be apart."""
    return next(one.allowed for one in tolerance.outputs if one.output == LOGITS)


def near(name: str, tolerance: Tolerance, pairs: Sequence[tuple[Array, Array]]) -> Check:
    """Compare logits, given in pairs of (expected, actual), each pair of one shape."""
    expected, actual = zip(*pairs, strict=True)
    runs = [[{LOGITS: array} for array in side] for side in (expected, actual)]
    return tolerance.check(name, *runs)


def same_tokens(texts: Sequence[tuple[Array, Array]], allowed: float) -> Check:
    """Check that the graph's logits choose the tokens of `generate`.

    Two tokens whose logits are closer than the tolerance are equals. The choice between them is
    chance in both programs. It does not fail the check; the detail counts it.

    Args:
        texts: pairs of the graph's logits, (batch, n, vocabulary), and generate's tokens,
            (batch, n).
        allowed: how far two logits may be apart.
    """
    import numpy as np

    wrong: list[str] = []
    close: list[str] = []
    for number, (logits, tokens) in enumerate(texts):
        chosen = logits.argmax(axis=-1)
        for row, place in zip(*np.nonzero(chosen != tokens), strict=True):
            mine, theirs = chosen[row, place], tokens[row, place]
            gap = float(logits[row, place, mine] - logits[row, place, theirs])
            what = f"text {number}, row {row}, token {place}: {mine} instead of {theirs}"
            (close if gap <= allowed else wrong).append(what)
    total = sum(tokens.size for _, tokens in texts)
    chance = f", {len(close)} of them a choice between equals within the tolerance" if close else ""
    fault = f"{len(wrong)} of {total} tokens are not those of model.generate: "
    return Check(
        "generates as model.generate",
        passed=not wrong,
        worst=float(len(wrong)),
        tolerance=0.0,
        where=wrong[0].partition(":")[0] if wrong else "",
        detail=f"{fault}{'; '.join(wrong[:_NAMED])}" if wrong else f"{total} tokens{chance}",
    )


def new_tokens(model: nn.Module, most: int | None) -> int:
    """Return how many tokens are generated: NEW_TOKENS, or fewer for a large model.

    most: the tokens that the model's positions leave; None for no bound.
    """
    elements = sum(parameter.numel() for parameter in model.parameters())
    count = max(FEWEST_TOKENS, min(NEW_TOKENS, NEW_TOKENS * QUICK // max(elements, 1)))
    return count if most is None else min(count, most)


def room(source: CachedDecoder) -> int | None:
    """Return how many tokens fit behind the longest prompt; None for no bound."""
    widest = max(max(lengths) for lengths in PROMPTS)
    return None if source.longest is None else source.longest - widest


def make_prompts(source: CachedDecoder, seed: int) -> list[Prompt]:
    """Make seeded texts of the lengths in PROMPTS, with ids below the source's bound."""
    import numpy as np

    random = np.random.default_rng(seed)
    high = source.inputs[0].high or 2
    prompts = []
    for lengths in PROMPTS:
        width = max(lengths)
        rows = np.arange(width) >= width - np.array(lengths)[:, None]
        mask = rows.astype(np.int64)
        prompts.append(Prompt(random.integers(0, high, (len(lengths), width)) * mask, mask))
    return prompts


class Decoder:
    """Runs the graph as a user does, and keeps the past between two steps."""

    def __init__(self, path: Path, source: CachedDecoder, opener: Opener) -> None:
        """Load the file, which has the source's inputs.

        Raises:
            VerificationError: the runtime does not load the file.
        """
        self._path, self._session = path, opener(path)
        self._outputs = [output.name for output in self._session.get_outputs()]
        #: Whether the graph takes position_ids.
        self.positioned = any(spec.name == "position_ids" for spec in source.inputs)
        self._empty = {
            spec.name: spec.dims for spec in source.inputs if spec.name.startswith(f"{PAST}.")
        }
        halves = [i.type == "tensor(float16)" for i in self._session.get_inputs()]
        self._floats = "float16" if any(halves) else "float32"
        self._past: dict[str, Array] = {}

    def start(self, batch: int) -> None:
        """Start new texts, with an empty past."""
        import numpy as np

        self._past = {
            name: np.zeros((batch, int(heads), 0, int(size)), self._floats)
            for name, (_, heads, _, size) in self._empty.items()
        }

    def step(self, ids: Array, mask: Array) -> Array:
        """Run the graph on new tokens and return their logits, (batch, n, vocabulary).

        Args:
            ids: the new tokens, int64 (batch, n).
            mask: of all tokens so far, the new ones included.
        """
        feed = {"input_ids": ids, "attention_mask": mask, **self._past}
        if self.positioned:
            feed["position_ids"] = positions_of(mask)[:, -ids.shape[1] :]
        outputs = run_session(self._session, self._path, feed, self._outputs)
        self._past = {name: outputs[name.replace(PAST, PRESENT, 1)] for name in self._empty}
        return outputs[LOGITS]


def generate(model: Any, feed: Mapping[str, Array], count: int, start: int = 0) -> Array:
    """Run transformers' `generate` with greedy search and without an end token.

    Args:
        model: of transformers.
        feed: its inputs.
        count: how many new tokens are generated.
        start: the first token of a decoder beside an encoder.

    Returns:
        int64 (batch, tokens): all tokens, those of the prompt or `start` first.

    Raises:
        UsageError: the model does not generate.
    """
    import torch
    import transformers

    settings: Any = transformers.GenerationConfig
    # The mixin's, not the class's own: Whisper's splits a sound into pieces and forces tokens.
    own_generate: Any = transformers.GenerationMixin.generate
    own = model.generation_config
    model.generation_config = settings(
        do_sample=False, num_beams=1, max_new_tokens=count, pad_token_id=0, use_cache=True,
        decoder_start_token_id=start,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    try:
        with quiet(), user_code("the merged model does not generate:"):
            tokens = own_generate(model, **tensors)
    finally:
        model.generation_config = own
    found: Array = tokens.numpy()
    return found


def logits_of(model: nn.Module, ids: Array, mask: Array, *, positioned: bool) -> Array:
    """Return the plain model's logits on the whole text at once, (batch, tokens, vocabulary)."""
    import torch

    feed = {"input_ids": ids, "attention_mask": mask}
    if positioned:
        feed["position_ids"] = positions_of(mask)
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    array: Array = call_model(model, inputs)[LOGITS].numpy()
    return array


def follow(decoder: Decoder, prompt: Prompt, tokens: Array) -> tuple[Array, Array]:
    """Return the graph's logits for the prompt in one step, and for each new token.

    The graph is fed the tokens of the reference. One other choice between equals would make every
    later step incomparable.
    """
    import numpy as np

    decoder.start(len(prompt.ids))
    first = decoder.step(prompt.ids, prompt.mask)
    later = []
    for place in range(tokens.shape[1] - 1):
        mask = prompt.longer(place + 1).mask
        later.append(decoder.step(tokens[:, place : place + 1], mask))
    return first, np.concatenate([first[:, -1:], *later], axis=1)
