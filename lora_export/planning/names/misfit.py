"""Hints for an adapter that does not fit: the base is another model, or its names are unknown."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.hf_cache import commit_of, commit_of_revision, repository_of
from lora_export.planning.names.origin import without_scheme
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Adapter, Checkpoint


def transformers_installed() -> bool:
    """Return whether the extra `hf` is installed, without importing it."""
    return importlib.util.find_spec("transformers") is not None


def lacking_extra(base: Checkpoint) -> str:
    """Return the hint to install transformers where it may know the names; else empty."""
    if not base.config.get("model_type") or transformers_installed():
        return ""
    return (
        "pip install 'lora-export[hf]': an adapter of transformers 5 has the names of the running "
        "model, and transformers knows which tensors of the checkpoint these are"
    )


def with_origin(
    base: Checkpoint, adapter: Adapter, problems: Sequence[Problem]
) -> Sequence[Problem]:
    """Add to the last problem the names of the base's model and of the adapter's."""
    models = "; ".join(text for text in (_base(base), _trained_on(adapter)) if text)
    if not problems or not models:
        return problems
    *others, last = problems
    return [*others, replace(last, hint=f"{last.hint}; {models}" if last.hint else models)]


def _base(base: Checkpoint) -> str:
    listed, kind = base.config.get("architectures"), base.config.get("model_type")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    if not name and not kind:
        return ""
    return f"the base is a {name or 'model'}" + (f" (model_type {kind})" if kind else "")


def _trained_on(adapter: Adapter) -> str:
    name = adapter.trained_on
    return f"by its adapter_config.json the adapter was trained on {name}" if name else ""


def other_bases(base: Checkpoint, adapters: Sequence[Adapter]) -> list[Problem]:
    """Return a problem for every adapter that names another base, or another revision of it.

    Where the shapes fit, nothing else shows that a base is the wrong one. Names are compared by
    their last part, and without the words of a quantisation: the trainer may have had the model in
    another folder, or quantised. The base's revision is known in the Hugging Face cache alone.
    """
    given = _name_of(base)
    if not given:
        return []
    found: dict[str, Problem] = {}
    for adapter in adapters:
        name = adapter.trained_on
        if name and _last(given) not in {_last(name), _last(without_scheme(name) or name)}:
            found.setdefault(name, _other_base(adapter, f"trained on {name}", given))
        elif commit := _other_commit(base, adapter):
            what = f"trained on revision {adapter.revision} of {name}"
            found.setdefault(f"{name}@{commit}", _other_base(adapter, what, f"revision {commit}"))
    return list(found.values())


def why_not_compared(base: Checkpoint, adapters: Sequence[Adapter]) -> str:
    """Return why no adapter's base could be compared with this one; empty where one was."""
    if not any(adapter.trained_on for adapter in adapters):
        return "no adapter names the base that it was trained on"
    return "" if _name_of(base) else f"{base.root.name} is a file, which has no model's name"


def _name_of(base: Checkpoint) -> str:
    """Return the base's name in the Hugging Face cache, else its folder's; empty for a file."""
    folder = base.root.resolve().name if base.layout == "folder" else ""
    return repository_of(base.root) or folder


def _other_base(adapter: Adapter, trained_on: str, given: str) -> Problem:
    message = f"by adapter_config.json it was {trained_on}; the base given is {given}"
    hint = "an adapter is right only on the weights that it was trained on: check the base"
    return Problem(message, str(adapter.path), hint, cause="fit/other-base")


def _other_commit(base: Checkpoint, adapter: Adapter) -> str:
    """Return the base's commit where the adapter's revision is known to be another; else empty."""
    commit = commit_of(base.root)
    wanted = commit_of_revision(base.root, adapter.revision) if adapter.revision else ""
    return commit if wanted and commit and wanted != commit else ""


def _last(name: str) -> str:
    path = Path(name)
    return Path(repository_of(path) or path).name.lower()
