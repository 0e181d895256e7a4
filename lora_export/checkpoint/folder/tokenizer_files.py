"""Decides which files of a folder belong to its tokenizer; chat templates do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.limits import VOCABULARY
from lora_export.checkpoint.reading import read_json_object, system_errors
from lora_export.records import SideFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_TEMPLATES = "additional_chat_templates"
_NAME = re.compile(
    r"tokenizer(?:_config)?\.json|tokenizer\.model(?:\.v\d+)?|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.(?:json|txt|bpe|model)|merges\.txt|spiece\.model|"
    r"sentencepiece\.bpe\.model|(?:source|target)\.spm|tekken\.json|[\w.-]+\.tiktoken|"
    rf"chat_template\.(?:jinja|json)|{_TEMPLATES}/[^/]+\.jinja",
    re.ASCII,
)


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file of a model folder, by its relative name, belongs to the tokenizer."""
    return _NAME.fullmatch(name) is not None


def tokenizer_files(folder: Path) -> list[SideFile]:
    """List the tokenizer files of `folder` by name, and read no other file in it.

    Raises:
        StorageError: the folder cannot be read.
    """
    with system_errors(folder, "read"):
        templates = folder / _TEMPLATES
        inside = list(templates.iterdir()) if templates.is_dir() else []
        paths = [path for path in [*folder.iterdir(), *inside] if path.is_file()]
    files = [SideFile(path.relative_to(folder).as_posix(), path) for path in paths]
    kept = [file for file in files if is_tokenizer_file(file.name)]
    return sorted(kept, key=lambda file: file.name)


def highest_token(files: Iterable[SideFile]) -> int | None:
    """Return the highest token id in tokenizer.json, a file of the tokenizers library.

    None when there is no such file, or it lists no tokens. Then only the tokenizer's class knows.

    Raises:
        InputError: the file is no JSON object.
    """
    source = next((file.source for file in files if file.name == "tokenizer.json"), None)
    if source is None:
        return None
    document = read_json_object(source, most=VOCABULARY)
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: list[object] = []
    if isinstance(vocabulary, dict):
        ids += vocabulary.values()
    if isinstance(vocabulary, list):  # Unigram: a token's place is its id
        ids += range(len(vocabulary))
    if isinstance(added, list):
        ids += [item.get("id") for item in added if isinstance(item, dict)]
    return max((one for one in ids if isinstance(one, int)), default=None)
