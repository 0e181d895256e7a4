"""The choice of the result's tokenizer: the base's, unless training resized the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.links import refuse_leaving
from lora_export.checkpoint.folder.tokenizer_files import is_tokenizer_file, tokenizer_files
from lora_export.records import Problem, SideFile
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.merge_options import Tokenizer
    from lora_export.records import Adapter

_OPTION = "--tokenizer"


def plan_tokenizer(
    given: Given, vocabulary: tuple[int, int] | None, findings: Findings
) -> list[SideFile]:
    """Return the base's side files, with the adapter's tokenizer where it fits the result.

    vocabulary: the numbers of tokens before and after the merge; None where both are the same.
    """
    wanted = given.options.tokenizer
    files = list(given.base.side_files)
    if given.base.layout == "file":
        if wanted == "adapter":
            message = "a base that is one file gives one file, without a tokenizer"
            findings.missing.append(
                Problem(message, _OPTION, "name the folder that holds it", cause="usage/no-effect")
            )
        return files
    theirs = _tokenizers(given.adapters, follow_links=given.options.follow_links)
    if wanted == "base":
        return files
    if wanted is None and vocabulary is None:
        _note_difference(files, theirs, findings)
        return files
    if len(theirs) == 1:
        return _exchanged(files, next(iter(theirs.values())), vocabulary, findings)
    _judge_lack(theirs, wanted, vocabulary, findings)
    return files


def _judge_lack(
    theirs: Collection[str],
    wanted: Tokenizer | None,
    vocabulary: tuple[int, int] | None,
    findings: Findings,
) -> None:
    """Refuse or warn where no adapter, or more than one, has a tokenizer for the result.

    theirs: the paths of the adapters with a tokenizer.
    """
    if theirs:
        message = f"{len(theirs)} adapters have different tokenizers: {', '.join(theirs)}"
        hint = "--tokenizer base, and put the right files into the result yourself"
        findings.missing.append(Problem(message, _OPTION, hint, cause="usage/no-effect"))
    elif wanted == "adapter":
        message = "no adapter's folder holds tokenizer files"
        findings.missing.append(
            Problem(message, _OPTION, "leave it out to keep the base's", cause="usage/no-effect")
        )
    elif vocabulary and vocabulary[1] > vocabulary[0]:
        findings.warnings.append(
            "the vocabulary grew, but no adapter's folder holds a tokenizer: the base's, which is "
            "kept, does not know the new tokens"
        )


def _tokenizers(adapters: Sequence[Adapter], *, follow_links: bool) -> dict[str, list[SideFile]]:
    """Collect the tokenizer files beside each adapter, by its path; equal ones are listed once.

    Raises:
        InputError: a file is a link that leads out of the adapter's folder.
    """
    found: dict[str, list[SideFile]] = {}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for adapter in adapters:
        files = tokenizer_files(adapter.path.parent)
        if not follow_links:
            refuse_leaving(adapter.path.parent, [file.source for file in files if file.source])
        key = tuple((file.name, file_sha256(file.source)) for file in files if file.source)
        if files and key not in seen:
            seen.add(key)
            found[str(adapter.path)] = files
    return found


def _exchanged(
    files: Sequence[SideFile],
    theirs: Sequence[SideFile],
    vocabulary: tuple[int, int] | None,
    findings: Findings,
) -> list[SideFile]:
    """Return the side files with the adapter's tokenizer instead of the base's."""
    kept = [file for file in files if not is_tokenizer_file(file.name)]
    names = {file.name for file in theirs}
    gone = [f.name for f in files if is_tokenizer_file(f.name) and f.name not in names]
    why = _OPTION
    if vocabulary:
        old, new = vocabulary
        why = f"its vocabulary is {'larger' if new > old else 'smaller'} than the base's"
    left = f"; left out, as the adapter has none: {first_names(gone)}" if gone else ""
    findings.choices.append(f"tokenizer: the adapter's {first_names(sorted(names))} ({why}){left}")
    taken = [replace(file, edits=("the adapter's",)) for file in theirs]
    return sorted([*kept, *taken], key=lambda file: file.name)


def _note_difference(
    files: Sequence[SideFile], theirs: Mapping[str, Sequence[SideFile]], findings: Findings
) -> None:
    """Note a tokenizer or chat template of the adapter that differs from the base's."""
    own = {file.name: file for file in files}
    other = [
        file.name
        for tokenizer in theirs.values()
        for file in tokenizer
        if file.name not in own or not _same(file, own[file.name])
    ]
    if other:
        findings.choices.append(
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
