"""What a model is called on a hub, and the name of what it was quantised from."""

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
# What stands beside a scheme's name, and means nothing alone.
_DETAIL = re.compile(
    r"unsloth|dynamic|block|sym|marlin|actorder|true|false|ao|g\d+|gs\d+|\d+g", re.IGNORECASE
)
# Who publishes the original as well; of others, only the model's own name is known.
_PUBLISHERS = frozenset({"unsloth", "Qwen", "google", "mistralai", "meta-llama", "deepseek-ai"})


def without_scheme(name: str) -> str | None:
    """Remove what says how a model is quantised (`unsloth/X-bnb-4bit`: unsloth/X), else None."""
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
    """Return the base's name on a hub: of its cache, or as the adapters' trainers called it.

    config.json is not asked: its _name_or_path may be that of the model before this one. Of a
    quantised model that an adapter was trained on, the name of the original. Empty when unknown.
    """
    if cached := repository_of(base.root):
        return cached
    trained = {hub_name(adapter.trained_on) for adapter in adapters}
    name = trained.pop() if len(trained) == 1 else ""
    return hub_name(_original(name) if without_scheme(name) else name)


def original_hint(base: Checkpoint, adapters: Sequence[Adapter]) -> str:
    """Return what to merge into instead of a quantised base, by its name where that is known."""
    start = "merge into the 16-bit base that it was quantised from"
    named = [name for name in dict.fromkeys(_originals(base, adapters)) if name]
    return f"{start}: {' or '.join(named[:2])}" if named else start


def _originals(base: Checkpoint, adapters: Sequence[Adapter]) -> Iterator[str]:
    """Yield what the adapters were trained on, then what the base's own names lead to."""
    own = repository_of(base.root)
    for name in (hub_name(adapter.trained_on) for adapter in adapters):
        yield _original(name) if without_scheme(name) or name == own else name
    yield _original(own or base.root.name)
    yield _original(hub_name(base.config.get("_name_or_path")))


def _original(name: str) -> str:
    """Return the original's name: with its publisher where that is the same; empty when unknown."""
    plain = without_scheme(name) or ""
    publisher, _, model = plain.rpartition("/")
    return plain if publisher in _PUBLISHERS else model
