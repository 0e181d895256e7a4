"""Token ids that the files around the weights name, held against a vocabulary that was cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.tokenizer_files import highest_token, is_tokenizer_file
from lora_export.checkpoint.reading import read_json_object
from lora_export.records import Problem
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import SideFile

_GENERATION = "generation_config.json"
_PAD = "pad_token_id"


def check_special_tokens(draft: Draft, old: int, new: int) -> None:
    """Refuse a padding token that the cut vocabulary has not, and tell of every other such token.

    torch builds no table without its padding row, so transformers could not load the result.
    Other ids are read in use only, and fail there in the unmerged model as well.
    """
    root = draft.base.root
    lost = _lost(draft.base.config, old, new)
    for key in [key for key in lost if key.endswith(_PAD)]:
        pad = ", ".join(map(str, lost.pop(key)))
        message = f"{key} is {pad}, and the vocabulary is cut from {old} to {new} tokens"
        hint = f"write the padding token of the training, below {new}, or null, into it"
        draft.unfit.append(Problem(message, str(root / "config.json"), hint))
    _tell(draft, "config.json", lost, new)
    if any(file.name == _GENERATION for file in draft.base.side_files):
        _tell(draft, _GENERATION, _lost(read_json_object(root / _GENERATION), old, new), new)


def check_tokenizer(draft: Draft, files: Sequence[SideFile]) -> None:
    """Tell where the result's tokenizer may give tokens that a cut vocabulary has not."""
    names = [file.name for file in files if is_tokenizer_file(file.name)]
    if draft.vocabulary is None or draft.vocabulary[1] > draft.vocabulary[0] or not names:
        return
    new = draft.vocabulary[1]
    highest = highest_token(files)
    if highest is None:
        draft.warnings.append(
            f"the vocabulary is cut to {new} tokens, and the highest token of the tokenizer "
            f"({first_names(names)}) is not known: one above {new - 1} fails in the result"
        )
    elif highest >= new:
        draft.warnings.append(
            f"the vocabulary is cut to {new} tokens, and tokenizer.json has tokens up to "
            f"{highest}: one above {new - 1} fails in the result, as in the unmerged model"
        )


def _tell(draft: Draft, file: str, lost: Mapping[str, list[int]], new: int) -> None:
    if lost:
        named = ", ".join(f"{key} {', '.join(map(str, ids))}" for key, ids in lost.items())
        draft.warnings.append(f"{file} names tokens that the {new} of the result have not: {named}")


def _lost(config: Mapping[str, object], old: int, new: int) -> dict[str, list[int]]:
    """The ids that the base's vocabulary has and the result's has not, by keys."""
    found = {}
    for key, value in _members(config):
        if key.endswith(("_token_id", "_token_ids", "_token_index")):
            listed = value if isinstance(value, list) else [value]
            found[key] = [one for one in listed if type(one) is int and new <= one < old]
    return {key: ids for key, ids in found.items() if ids}


def _members(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The members of the object and of those in it, the latter with both keys."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value
