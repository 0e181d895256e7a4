"""What lies around the weights of a result: configuration, tokenizer, model card.

Byte for byte the base's, but for what the merge forces; every edit is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.side_files import edit_json
from lora_export.planning.card import CARD_NAME, plan_card
from lora_export.planning.quantized import stale_claims
from lora_export.planning.tokenizers import new_vocabulary, plan_tokenizer
from lora_export.records import SideFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, Card, ShardPlan


def plan_around(
    draft: Draft,
    adapters: Sequence[Adapter],
    shards: Sequence[ShardPlan],
    edits: Mapping[str, object],
) -> tuple[tuple[SideFile, ...], Card | None]:
    """The side files of the result, and its model card, which is written after the proof.

    edits: members of config.json that the merge changes.
    """
    grown = new_vocabulary(draft.base, shards)
    files = plan_tokenizer(draft, adapters, grew=grown is not None)
    gone = stale_claims(draft.base, draft)
    changed = {**_vocabulary(draft, grown), **edits}
    files = [
        _edited(file, changed, gone) if file.name == "config.json" else file
        for file in files
        if file.name != CARD_NAME
    ]
    return tuple(files), plan_card(draft.base, adapters, files)


def _vocabulary(draft: Draft, grown: tuple[int, int] | None) -> dict[str, object]:
    """The new vocab_size, wherever config.json tells the old one."""
    if grown is None:
        return {}
    before, after = grown
    config = draft.base.config
    if config.get("vocab_size") == before:
        return {"vocab_size": after}
    text = config.get("text_config")
    if isinstance(text, dict) and text.get("vocab_size") == before:
        return {"text_config": {**text, "vocab_size": after}}
    draft.warnings.append(
        f"the vocabulary grew to {after} rows, but config.json tells no vocab_size of {before}: "
        "set it yourself"
    )
    return {}


def _edited(file: SideFile, edits: Mapping[str, object], without: Sequence[str]) -> SideFile:
    if file.source is None or not (edits or without):
        return file
    content = edit_json(file.source.read_bytes(), edits, without)
    words = [f"{key}: {_told(value)}" for key, value in edits.items()]
    words += [f"without {key}" for key in without]
    return SideFile(file.name, None, content, tuple(words))


def _told(value: object) -> str:
    """A value in words; of an object, that its vocabulary is another."""
    return f"vocab_size: {value['vocab_size']}" if isinstance(value, dict) else str(value)
