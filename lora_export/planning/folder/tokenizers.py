"""Whose tokenizer the result gets: the base's, unless training resized the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.tokenizer_files import is_tokenizer_file, tokenizer_files
from lora_export.records import Problem, SideFile
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter

_OPTION = "--tokenizer"


def plan_tokenizer(draft: Draft, adapters: Sequence[Adapter]) -> list[SideFile]:
    """The base's side files, its tokenizer exchanged for the adapter's where that is meant."""
    wanted = draft.options.tokenizer
    files = list(draft.base.side_files)
    if draft.base.layout == "file":
        if wanted == "adapter":
            message = "a base that is one file gives one file, without a tokenizer"
            draft.missing.append(Problem(message, _OPTION, "name the folder that holds it"))
        return files
    theirs = _tokenizers(adapters)
    if wanted == "base" or (wanted is None and draft.vocabulary is None):
        _tell_difference(draft, files, theirs)
        return files
    if len(theirs) == 1:
        return _exchanged(draft, files, next(iter(theirs.values())))
    if theirs:
        message = f"{len(theirs)} adapters have different tokenizers: {', '.join(theirs)}"
        hint = "--tokenizer base, and put the right files into the result yourself"
        draft.missing.append(Problem(message, _OPTION, hint))
    elif wanted == "adapter":
        message = "no adapter's folder holds tokenizer files"
        draft.missing.append(Problem(message, _OPTION, "leave it out to keep the base's"))
    elif draft.vocabulary and draft.vocabulary[1] > draft.vocabulary[0]:
        draft.warnings.append(
            "the vocabulary grew, but no adapter's folder holds a tokenizer: the base's, which is "
            "kept, does not know the new tokens"
        )
    return files


def _tokenizers(adapters: Sequence[Adapter]) -> dict[str, list[SideFile]]:
    """The tokenizer files beside each adapter, by the adapter's path; the same ones once."""
    found: dict[str, list[SideFile]] = {}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for adapter in adapters:
        files = tokenizer_files(adapter.path.parent)
        key = tuple((file.name, file_sha256(file.source)) for file in files if file.source)
        if files and key not in seen:
            seen.add(key)
            found[str(adapter.path)] = files
    return found


def _exchanged(
    draft: Draft, files: Sequence[SideFile], theirs: Sequence[SideFile]
) -> list[SideFile]:
    kept = [file for file in files if not is_tokenizer_file(file.name)]
    names = {file.name for file in theirs}
    gone = [f.name for f in files if is_tokenizer_file(f.name) and f.name not in names]
    why = _OPTION
    if draft.vocabulary:
        old, new = draft.vocabulary
        why = f"its vocabulary is {'larger' if new > old else 'smaller'} than the base's"
    left = f"; left out, as the adapter has none: {first_names(gone)}" if gone else ""
    draft.choices.append(f"tokenizer: the adapter's {first_names(sorted(names))} ({why}){left}")
    taken = [replace(file, edits=("the adapter's",)) for file in theirs]
    return sorted([*kept, *taken], key=lambda file: file.name)


def _tell_difference(
    draft: Draft, files: Sequence[SideFile], theirs: Mapping[str, Sequence[SideFile]]
) -> None:
    """Say so when the adapter was trained with another tokenizer or chat template."""
    own = {file.name: file for file in files}
    other = [
        file.name
        for tokenizer in theirs.values()
        for file in tokenizer
        if file.name not in own or not _same(file, own[file.name])
    ]
    if other and draft.options.tokenizer is None:
        draft.choices.append(
            f"tokenizer: the base's; the adapter's folder has another {first_names(other)} "
            f"({_OPTION} adapter takes its files)"
        )


def _same(left: SideFile, right: SideFile) -> bool:
    if left.source is None or right.source is None:
        return False
    if left.source == right.source:
        return True
    if left.source.stat().st_size != right.source.stat().st_size:
        return False
    return file_sha256(left.source) == file_sha256(right.source)
