"""Proves the two graphs of an encoder-decoder: what they say together, at once and step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.models.generation.cached_pair import DECODER, ENCODER, IDS, MASK
from lora_export.models.generation.caches import PAST, PRESENT
from lora_export.models.network.calling import call_model
from lora_export.verification.runtime.generation import (
    LOGITS,
    NEW_TOKENS,
    allowed_logits,
    generated,
    near,
    same_tokens,
)
from lora_export.verification.runtime.sessions import run_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.generation.cached_pair import CachedPair
    from lora_export.records import Check
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.runtime.sessions import Opener

    Array = NDArray[Any]
    Probe = Mapping[str, Array]

HEARD = "encoder_last_hidden_state"


class Answerer:
    """Both graphs as a user runs them: the encoder once, then the decoder step by step."""

    def __init__(self, folder: Path, pair: CachedPair, opener: Opener) -> None:
        """Load both files of the folder."""
        self._paths = {name: folder / f"{name}.onnx" for name in pair.parts()}
        self._sessions = {name: opener(path) for name, path in self._paths.items()}
        self._decoder = pair.decoder
        self._fixed: dict[str, Array] = {}
        self._past: dict[str, Array] = {}

    def hear(self, feed: Probe) -> Array:
        """Take the encoder's inputs, forget what was said; the encoder's result."""
        import numpy as np

        outputs = self._run(f"{ENCODER}_model", feed)
        hidden = outputs["last_hidden_state"]
        self._fixed, self._past = {}, {}
        for spec in self._decoder.inputs:
            if spec.name.startswith(PAST) and f".{ENCODER}." in spec.name:
                self._fixed[spec.name] = outputs[_present(spec.name)]
            elif spec.name.startswith(PAST):
                _, heads, _, size = spec.dims
                shape = (len(hidden), int(heads), 0, int(size))
                self._past[spec.name] = np.zeros(shape, hidden.dtype)
            elif spec.name == MASK:
                self._fixed[MASK] = feed["attention_mask"]
        return hidden

    def step(self, ids: Array) -> Array:
        """The logits for new tokens of the answer."""
        outputs = self._run(f"{DECODER}_model", {IDS: ids, **self._fixed, **self._past})
        self._past = {name: outputs[_present(name)] for name in self._past}
        return outputs[LOGITS]

    def _run(self, name: str, feed: Probe) -> dict[str, Array]:
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        return run_session(session, self._paths[name], feed, names)


def _present(name: str) -> str:
    return name.replace(PAST, PRESENT, 1)


def run_pair(
    folder: Path, pair: CachedPair, probes: Sequence[Probe], opener: Opener
) -> list[dict[str, Array]]:
    """What both graphs say to each probe, an answer at once: logits and the encoder's result.

    Raises:
        VerificationError: the runtime does not load or run a file.
    """
    answerer = Answerer(folder, pair, opener)
    return [
        {HEARD: answerer.hear(_heard(probe)), LOGITS: answerer.step(probe[IDS])} for probe in probes
    ]


def _heard(probe: Probe) -> dict[str, Array]:
    return {name: array for name, array in probe.items() if name != IDS}


def check_answers(
    folder: Path,
    pair: CachedPair,
    model: nn.Module,
    tolerance: Tolerance,
    probes: Sequence[Probe],
    *,
    opener: Opener,
) -> tuple[Check, ...]:
    """Let both graphs answer each probe step by step, as the plain merged model does.

    Args:
        folder: of both files.
        pair: whose inputs they have.
        model: the merged one, as transformers builds it.
        tolerance: how far the logits may be apart.
        probes: of which the encoder's inputs are taken.
        opener: opens the sessions on both files.

    Returns:
        two checks: the logits of every step, and the tokens.

    Raises:
        VerificationError: the runtime does not run a file.
        UsageError: the merged model does not generate.
    """
    answerer = Answerer(folder, pair, opener)
    start = getattr(pair.plain.config, "decoder_start_token_id", None) or 0
    count = min(NEW_TOKENS, pair.longest - 1) if pair.longest else NEW_TOKENS
    steps, texts = [], []
    for probe in probes:
        heard = _heard(probe)
        said = generated(model, heard, count, start)
        answerer.hear(heard)
        actual = _follow(answerer, said[:, :-1])
        steps.append((_plain(model, heard, said[:, :-1]), actual))
        texts.append((actual, said[:, 1:]))
    return (
        near("each step with a past = plain model", tolerance, steps),
        same_tokens(texts, allowed_logits(tolerance)),
    )


def _follow(answerer: Answerer, said: Array) -> Array:
    import numpy as np

    steps = [answerer.step(said[:, place : place + 1]) for place in range(said.shape[1])]
    return np.concatenate(steps, axis=1)


def _plain(model: nn.Module, heard: Probe, said: Array) -> Array:
    import torch

    feed = {name: torch.from_numpy(array) for name, array in {**heard, IDS: said}.items()}
    array: Array = call_model(model, feed)[LOGITS].numpy()
    return array
