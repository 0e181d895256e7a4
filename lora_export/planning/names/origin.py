"""The names of models on a hub: the base's, and that of the model it was quantised from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.hf_cache import REPOSITORY, repository_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Adapter, Checkpoint

_NAME_PARTS = re.compile(r"(?P<stem>.+)[-_.](?P<part>[^-_.]+)", re.DOTALL)
_SCHEME = re.compile(
    r"bnb|gptq|awq|hqq|eetq|aqlm|quanto|quark|torchao|autoround|quantized|nf4|[48]bits?|"
    r"(?:int|fp|mxfp|nvfp)[48]|w\d+a\d+(?:g\d+)?",
    re.IGNORECASE,
)
# Parts that stand beside a scheme's name; alone they do not show a quantisation.
_DETAIL = re.compile(
    r"unsloth|dynamic|block|sym|marlin|actorder|true|false|ao|g\d+|gs\d+|\d+g", re.IGNORECASE
)
# Publishers of the originals as well. For others, only the model's own name is known.
_PUBLISHERS = frozenset({"unsloth", "Qwen", "google", "mistralai", "meta-llama", "deepseek-ai"})


def without_scheme(name: str) -> str | None:
    """Remove the parts of a name that describe a quantisation: `org/X-bnb-4bit` gives `org/X`.

    Returns:
        None where the name has no such part.
    """
    left, is_quantized = name, False
    while found := _NAME_PARTS.fullmatch(left):
        part = found["part"]
        if not (_SCHEME.fullmatch(part) or _DETAIL.fullmatch(part)):
            break
        is_quantized = is_quantized or bool(_SCHEME.fullmatch(part))
        left = found["stem"]
    return left if is_quantized else None


def hub_name(text: object) -> str:
    """Return `text` when it can be the name of a repository, `org/name`; else empty."""
    return text if isinstance(text, str) and REPOSITORY.fullmatch(text) and ".." not in text else ""


def base_name(base: Checkpoint, adapters: Sequence[Adapter]) -> str:
    """Return the base's name on a hub: that of its cache, else that in the adapters' configs.

    Where an adapter was trained on a quantised model, it is the original's name. config.json is not
    used: its _name_or_path may name the model that this one was trained from. Empty when unknown.
    """
    if cached := repository_of(base.root):
        return cached
    trained = {hub_name(adapter.trained_on) for adapter in adapters}
    name = trained.pop() if len(trained) == 1 else ""
    return hub_name(_original(name) if without_scheme(name) else name)


def original_hint(base: Checkpoint, adapters: Sequence[Adapter]) -> str:
    """Return a hint to merge into the original of a quantised base, by its name where known."""
    start = "merge into the 16-bit base that it was quantised from"
    named = [name for name in dict.fromkeys(_originals(base, adapters)) if name]
    return f"{start}: {' or '.join(named[:2])}" if named else start


def _originals(base: Checkpoint, adapters: Sequence[Adapter]) -> Iterator[str]:
    """Yield the originals' names: by the adapters' configurations, then by the base's own names."""
    own = repository_of(base.root)
    for name in (hub_name(adapter.trained_on) for adapter in adapters):
        yield _original(name) if without_scheme(name) or name == own else name
    yield _original(own or base.root.name)
    yield _original(hub_name(base.config.get("_name_or_path")))


def _original(name: str) -> str:
    """Return the name of the original, with the publisher where it publishes both; else empty."""
    plain = without_scheme(name) or ""
    publisher, _, model = plain.rpartition("/")
    return plain if publisher in _PUBLISHERS else model
