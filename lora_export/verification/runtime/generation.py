"""Proves a graph with keys and values by what it is for: generating text, token by token.

The reference is the merged model as transformers builds it, without any of our code in its
forward: its logits on the whole text, and its own `generate`.
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
# Of texts that are told apart by length: one alone, and a batch with padding on the left.
PROMPTS = ((5,), (7, 3, 6))
LOGITS = "logits"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """Texts of a batch, padded on the left. ids, mask: int64 (batch, sequence)."""

    ids: Array
    mask: Array

    @property
    def width(self) -> int:
        """Tokens in the longest text."""
        return int(self.ids.shape[1])

    def longer(self, count: int, tokens: Array | None = None) -> Prompt:
        """With so many real tokens more; without `tokens` only the mask is."""
        import numpy as np

        mask = np.pad(self.mask, ((0, 0), (0, count)), constant_values=1)
        ids = self.ids if tokens is None else np.concatenate([self.ids, tokens], axis=1)
        return Prompt(ids, mask)


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt and what became of it.

    prompt_logits, step_logits: (the plain model's, the graph's), of real tokens; the latter for
    each new token, (batch, tokens, vocabulary). tokens: the reference's.
    """

    prompt_logits: tuple[Array, Array]
    step_logits: tuple[Array, Array]
    tokens: Array


def check_generation(
    path: Path,
    source: CachedDecoder,
    model: nn.Module,
    tolerance: Tolerance,
    *,
    seed: int,
    opener: Opener,
) -> tuple[Check, ...]:
    """Hold the graph's logits and its tokens against those of the plain merged model.

    Args:
        path: the ONNX file.
        source: whose inputs the graph has.
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
    decoder, count = Decoder(path, source, opener), new_tokens(source)
    texts = [_text(decoder, model, prompt, count) for prompt in make_prompts(source, seed)]
    return (
        near("prompt = plain model", tolerance, [text.prompt_logits for text in texts]),
        near("each step with a past = plain model", tolerance, [t.step_logits for t in texts]),
        same_tokens([(t.step_logits[1], t.tokens) for t in texts], allowed_logits(tolerance)),
    )


def _text(decoder: Decoder, model: nn.Module, prompt: Prompt, count: int) -> Text:
    feed = {"input_ids": prompt.ids, "attention_mask": prompt.mask}
    tokens = generated(model, feed, count)[:, prompt.width :]
    first, steps = _follow(decoder, prompt, tokens)
    whole = prompt.longer(tokens.shape[1], tokens)
    plain = _logits(model, whole.ids, whole.mask, positioned=decoder.positioned)
    real = prompt.mask.astype(bool)
    before = prompt.width - 1  # the prompt's last token tells the first new one
    return Text((plain[:, : prompt.width][real], first[real]), (plain[:, before:-1], steps), tokens)


def allowed_logits(tolerance: Tolerance) -> float:
    """How far two logits may be apart."""
    return next(one.allowed for one in tolerance.outputs if one.output == LOGITS)


def near(name: str, tolerance: Tolerance, pairs: Sequence[tuple[Array, Array]]) -> Check:
    """Hold logits against each other, given in pairs of (expected, actual)."""
    expected, actual = zip(*pairs, strict=True)
    runs = [[{LOGITS: array} for array in side] for side in (expected, actual)]
    return tolerance.check(name, *runs)


def same_tokens(texts: Sequence[tuple[Array, Array]], allowed: float) -> Check:
    """Whether the graph chooses what `generate` did: texts of (its logits, generate's tokens).

    A choice between two that lie closer than the tolerance is chance in either; it is told.
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
    chance = f"; {len(close)} of them a choice between equals within the tolerance" if close else ""
    return Check(
        "generates as model.generate",
        passed=not wrong,
        worst=float(len(wrong)),
        tolerance=0.0,
        where=wrong[0].partition(":")[0] if wrong else "",
        detail="; ".join([f"{total} tokens{chance}", *wrong[:_NAMED]]),
    )


def new_tokens(source: CachedDecoder) -> int:
    """How many tokens are generated: fewer than usual where the model's positions end."""
    widest = max(max(lengths) for lengths in PROMPTS)
    return NEW_TOKENS if source.longest is None else min(NEW_TOKENS, source.longest - widest)


def make_prompts(source: CachedDecoder, seed: int) -> list[Prompt]:
    """Seeded texts of the lengths of PROMPTS."""
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
    """The graph as a user runs it: holds the past between two steps."""

    def __init__(self, path: Path, source: CachedDecoder, opener: Opener) -> None:
        """Load the file, which has the source's inputs."""
        self._path, self._session = path, opener(path)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.positioned = any(spec.name == "position_ids" for spec in source.inputs)
        self._empty = {
            spec.name: spec.dims for spec in source.inputs if spec.name.startswith(f"{PAST}.")
        }
        self._past: dict[str, Array] = {}

    def start(self, batch: int) -> None:
        """Forget the past."""
        import numpy as np

        self._past = {
            name: np.zeros((batch, int(heads), 0, int(size)), np.float32)
            for name, (_, heads, _, size) in self._empty.items()
        }

    def step(self, ids: Array, mask: Array) -> Array:
        """The logits for new tokens `ids`; mask: of all tokens so far, these included."""
        feed = {"input_ids": ids, "attention_mask": mask, **self._past}
        if self.positioned:
            feed["position_ids"] = positions_of(mask)[:, -ids.shape[1] :]
        outputs = run_session(self._session, self._path, feed, self._outputs)
        self._past = {name: outputs[name.replace(PAST, PRESENT, 1)] for name in self._empty}
        return outputs["logits"]


def generated(model: Any, feed: Mapping[str, Array], count: int, start: int = 0) -> Array:
    """What transformers' `generate` makes of inputs: the likeliest token each time, and no end.

    start: the first token of a decoder beside an encoder. Returns all tokens, as `generate` does.

    Raises:
        UsageError: the model does not generate.
    """
    import torch
    import transformers

    settings: Any = transformers.GenerationConfig
    # Of the mixin: Whisper's own splits a sound into pieces, and forces tokens.
    generate: Any = transformers.GenerationMixin.generate
    own = model.generation_config
    model.generation_config = settings(
        do_sample=False, num_beams=1, max_new_tokens=count, pad_token_id=0, use_cache=True,
        decoder_start_token_id=start,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    try:
        with quiet(), user_code("the merged model does not generate:"):
            tokens = generate(model, **tensors)
    finally:
        model.generation_config = own
    found: Array = tokens.numpy()
    return found


def _logits(model: nn.Module, ids: Array, mask: Array, *, positioned: bool) -> Array:
    """Of the plain model, on the whole text at once."""
    import torch

    feed = {"input_ids": ids, "attention_mask": mask}
    if positioned:
        feed["position_ids"] = positions_of(mask)
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    array: Array = call_model(model, inputs)["logits"].numpy()
    return array


def _follow(decoder: Decoder, prompt: Prompt, tokens: Array) -> tuple[Array, Array]:
    """The graph's logits for a text, the prompt at once and then token by token: (batch, n, high).

    The tokens are those of the reference, so that one choice between equals does not hide what
    comes after it.
    """
    import numpy as np

    decoder.start(len(prompt.ids))
    first = decoder.step(prompt.ids, prompt.mask)
    later = []
    for place in range(tokens.shape[1] - 1):
        mask = prompt.longer(place + 1).mask
        later.append(decoder.step(tokens[:, place : place + 1], mask))
    return first, np.concatenate([first[:, -1:], *later], axis=1)
