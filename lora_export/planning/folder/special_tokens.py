"""The check of token ids in the files around the weights, for a vocabulary that was cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.tokenizer_files import highest_token, is_tokenizer_file
from lora_export.checkpoint.reading import read_json_object
from lora_export.records import Problem
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.records import Checkpoint, SideFile

_GENERATION = "generation_config.json"
_PAD = "pad_token_id"


def check_special_tokens(base: Checkpoint, old: int, new: int, findings: Findings) -> None:
    """Refuse a padding token that the cut vocabulary lacks, and warn of every other such token.

    torch builds no table without its padding row, so transformers could not load the result. Other
    ids are used only while the model runs. There the unmerged model fails as well.

    old, new: the numbers of tokens before and after the merge.
    """
    root = base.root
    lost = _lost(base.config, old, new)
    for key in [key for key in lost if key.endswith(_PAD)]:
        pad = ", ".join(map(str, lost.pop(key)))
        message = f"{key} is {pad}, and the vocabulary is cut from {old} to {new} tokens"
        hint = f"write the padding token of the training, below {new}, or null, into it"
        findings.unfit.append(
            Problem(message, str(root / "config.json"), hint, cause="fit/vocabulary")
        )
    _warn("config.json", lost, new, findings)
    if any(file.name == _GENERATION for file in base.side_files):
        lost = _lost(read_json_object(root / _GENERATION), old, new)
        _warn(_GENERATION, lost, new, findings)


def check_tokenizer(
    files: Sequence[SideFile], vocabulary: tuple[int, int] | None, findings: Findings
) -> None:
    """Warn where the result's tokenizer may give tokens that a cut vocabulary lacks.

    vocabulary: the numbers of tokens before and after the merge; None where both are the same.
    """
    names = [file.name for file in files if is_tokenizer_file(file.name)]
    if vocabulary is None or vocabulary[1] > vocabulary[0] or not names:
        return
    new = vocabulary[1]
    highest = highest_token(files)
    if highest is None:
        findings.warnings.append(
            f"the vocabulary is cut to {new} tokens, and the highest token of the tokenizer "
            f"({first_names(names)}) is not known: one above {new - 1} fails in the result"
        )
    elif highest >= new:
        findings.warnings.append(
            f"the vocabulary is cut to {new} tokens, and tokenizer.json has tokens up to "
            f"{highest}: one above {new - 1} fails in the result, as in the unmerged model"
        )


def _warn(file: str, lost: Mapping[str, list[int]], new: int, findings: Findings) -> None:
    if lost:
        named = ", ".join(f"{key} {', '.join(map(str, ids))}" for key, ids in lost.items())
        findings.warnings.append(
            f"{file} names tokens that the result with its {new} tokens lacks: {named}"
        )


def _lost(config: Mapping[str, object], old: int, new: int) -> dict[str, list[int]]:
    """Collect by key the ids that the base's vocabulary has and the result's lacks."""
    found = {}
    for key, value in _members(config):
        if key.endswith(("_token_id", "_token_ids", "_token_index")):
            listed = value if isinstance(value, list) else [value]
            found[key] = [one for one in listed if type(one) is int and new <= one < old]
    return {key: ids for key, ids in found.items() if ids}


def _members(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the members of the object and of objects inside it; an inner key is `outer.inner`."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value
