"""Networks of tests are as small as what they show allows: a larger one fails its test.

A default of a transformers configuration, such as twelve layers, makes a test ten times as dear as
it needs to be, and no assertion tells. A test that needs a large network has the marker
`large_network`; the slow tests need none.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

PARAMETERS = 200_000
LAYERS = 2
NAMES = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers",
         "encoder_layers", "decoder_layers", "num_encoder_layers")  # fmt: skip


class Watch:
    """Notes every transformers model that is built larger than a test needs."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._watches = False

    def begin(self) -> None:
        """Begin to watch, once transformers is imported at all."""
        library = sys.modules.get("transformers.modeling_utils")
        if library is None or self._watches:
            return
        self._watches = True
        right = library.PreTrainedModel.post_init

        @wraps(right)
        def post_init(model: Any) -> None:
            if why := too_large(model):
                self.seen.append(why)
            right(model)

        library.PreTrainedModel.post_init = post_init

    def take(self) -> list[str]:
        """Return what was seen since the last call."""
        seen, self.seen = self.seen, []
        return seen


def too_large(model: Any) -> str:
    """Say what is large about a transformers model; nothing where it is small."""
    name = type(model).__name__
    # A network on meta holds nothing and is never run: its size costs no time.
    parameters = sum(p.numel() for p in model.parameters() if not p.is_meta)
    if not parameters:
        return ""
    if parameters > PARAMETERS:
        return f"{name} has {parameters:,} parameters, more than {PARAMETERS:,}"
    layers = max((getattr(model.config, key, None) or 0 for key in NAMES), default=0)
    return f"{name} has {layers} layers, more than {LAYERS}" if layers > LAYERS else ""
