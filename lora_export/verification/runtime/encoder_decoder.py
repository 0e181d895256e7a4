"""Proves the two graphs of an encoder-decoder by their joint outputs, at once and step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.models.generation.cached_pair import DECODER, ENCODER, IDS, MASK
from lora_export.models.generation.caches import PAST, PRESENT
from lora_export.models.network.calling import call_model
from lora_export.verification.runtime.generation import (
    LOGITS,
    allowed_logits,
    generate,
    near,
    new_tokens,
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

ENCODED = "encoder_last_hidden_state"
"""transformers' name of the encoder's result among the outputs of the whole model."""


class PairRunner:
    """Runs both graphs as a user does: the encoder once, then the decoder step by step."""

    def __init__(self, folder: Path, pair: CachedPair, opener: Opener) -> None:
        """Load both files of the folder.

        Raises:
            VerificationError: the runtime does not load a file.
        """
        self._paths = {name: folder / f"{name}.onnx" for name in pair.parts()}
        self._sessions = {name: opener(path) for name, path in self._paths.items()}
        self._decoder = pair.decoder
        #: Inputs of the decoder that are the same at every step: the mask, and the keys and values
        #: of the encoder's result.
        self._fixed: dict[str, Array] = {}
        #: The keys and values of the decoder's tokens so far.
        self._past: dict[str, Array] = {}

    def encode(self, feed: Probe) -> Array:
        """Run the encoder, start with an empty past, and return the encoder's result."""
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
        """Run the decoder on new tokens, (batch, n), and return their logits, (batch, n, high)."""
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
    """Run both graphs on every probe, all tokens of the decoder in one step.

    Args:
        folder: has both files.
        pair: the networks that the files were exported of.
        probes: inputs of the encoder, and the decoder's ids.
        opener: opens the sessions on both files.

    Returns:
        the logits and the encoder's result of each probe.

    Raises:
        VerificationError: the runtime does not load or run a file.
    """
    runner = PairRunner(folder, pair, opener)
    # A dict display is evaluated in order: the encoder runs before the decoder.
    return [
        {ENCODED: runner.encode(encoder_inputs(probe)), LOGITS: runner.step(probe[IDS])}
        for probe in probes
    ]


def encoder_inputs(probe: Probe) -> dict[str, Array]:
    """Return the probe without the decoder's ids."""
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
    """Generate with both graphs step by step, and compare with the plain merged model.

    Args:
        folder: has both files.
        pair: the networks that the files were exported of.
        model: the merged one, as transformers builds it.
        tolerance: how far the logits may be apart.
        probes: the encoder's inputs; the decoder's ids are not used.
        opener: opens the sessions on both files.

    Returns:
        two checks: the logits of every step, and the tokens.

    Raises:
        VerificationError: the runtime does not run a file.
        UsageError: the merged model does not generate.
    """
    runner = PairRunner(folder, pair, opener)
    steps, texts = [], []
    for probe in probes:
        feed = encoder_inputs(probe)
        tokens = answer(model, pair, feed)
        runner.encode(feed)
        actual = follow_answer(runner, tokens[:, :-1])  # the logits of the last token choose none
        steps.append((plain_logits(model, feed, tokens[:, :-1]), actual))
        texts.append((actual, tokens[:, 1:]))
    return (
        near("each step with a past = plain model", tolerance, steps),
        same_tokens(texts, allowed_logits(tolerance)),
    )


def answer(model: nn.Module, pair: CachedPair, feed: Probe) -> Array:
    """Return the tokens that the plain model generates, its first one first; int64 (batch, n)."""
    start = getattr(pair.plain.config, "decoder_start_token_id", None) or 0
    count = new_tokens(model, pair.longest - 1 if pair.longest else None)
    return generate(model, feed, count, start)


def follow_answer(runner: PairRunner, tokens: Array) -> Array:
    """Return the graphs' logits for the reference's tokens, fed one by one."""
    import numpy as np

    steps = [runner.step(tokens[:, place : place + 1]) for place in range(tokens.shape[1])]
    return np.concatenate(steps, axis=1)


def plain_logits(model: nn.Module, feed: Probe, tokens: Array) -> Array:
    """Return the plain model's logits for the same tokens, all at once."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in {**feed, IDS: tokens}.items()}
    array: Array = call_model(model, tensors)[LOGITS].numpy()
    return array
