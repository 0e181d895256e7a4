"""What may explain that an adapter does not fit: another model, or names nobody knows here."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.hf_cache import repository_of
from lora_export.planning.origin import without_scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Adapter, Checkpoint, Problem


def transformers_installed() -> bool:
    """Whether the extra `hf` is there, without importing it."""
    return importlib.util.find_spec("transformers") is not None


def lacking_extra(base: Checkpoint) -> str:
    """How to get the names that transformers knows of the base's model; empty where it can tell."""
    if not base.config.get("model_type") or transformers_installed():
        return ""
    return (
        "pip install 'lora-export[hf]': an adapter of transformers 5 has the names of the running "
        "model, and transformers knows which tensors of the checkpoint these are"
    )


def with_origin(
    base: Checkpoint, adapter: Adapter, problems: Sequence[Problem]
) -> Sequence[Problem]:
    """The problems; the last one tells which model the base is, and which the adapter is for."""
    told = "; ".join(text for text in (_base(base), _trained_on(adapter)) if text)
    if not problems or not told:
        return problems
    *others, last = problems
    return [*others, replace(last, hint=f"{last.hint}; {told}" if last.hint else told)]


def _base(base: Checkpoint) -> str:
    listed, kind = base.config.get("architectures"), base.config.get("model_type")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    if not name and not kind:
        return ""
    return f"the base is a {name or 'model'}" + (f" (model_type {kind})" if kind else "")


def _trained_on(adapter: Adapter) -> str:
    name = adapter.trained_on
    return f"adapter_config.json says it was trained on {name}" if name else ""


def other_bases(base: Checkpoint, adapters: Sequence[Adapter]) -> list[str]:
    """Where an adapter names another base than this one; by the last part of both names.

    What an adapter was trained on may lie in another folder here, or be quantised there.
    """
    if base.layout != "folder":
        return []
    given = repository_of(base.root) or base.root.resolve().name
    names = dict.fromkeys(adapter.trained_on for adapter in adapters if adapter.trained_on)
    return [
        f"adapter_config.json says it was trained on {name}; the base given is {given}"
        for name in names
        if _last(given) not in {_last(name), _last(without_scheme(name) or name)}
    ]


def _last(name: str) -> str:
    path = Path(name)
    return Path(repository_of(path) or path).name.lower()
