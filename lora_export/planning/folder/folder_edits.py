"""What lies around the weights of a result: configuration, tokenizer, model card.

Byte for byte the base's, but for what the merge forces; every edit is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.json_edit import edit_json
from lora_export.planning.folder.card_edits import CARD_NAME, plan_card
from lora_export.planning.folder.special_tokens import check_tokenizer
from lora_export.planning.folder.tokenizers import plan_tokenizer
from lora_export.planning.updates.quantized import stale_claims
from lora_export.records import SideFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, Card


def plan_around(
    draft: Draft, adapters: Sequence[Adapter]
) -> tuple[tuple[SideFile, ...], Card | None]:
    """The side files of the result, and its model card, which is written after the proof."""
    files = plan_tokenizer(draft, adapters)
    check_tokenizer(draft, files)
    gone = stale_claims(draft.base, draft)
    files = [
        _edited(file, draft, gone) if file.name == "config.json" else file
        for file in files
        if file.name != CARD_NAME
    ]
    config = {
        **draft.base.config,
        **{path[0]: v for path, v in draft.edits.items() if not path[1:]},
    }
    return tuple(files), plan_card(draft.base, adapters, files, config)


def _edited(file: SideFile, draft: Draft, without: Sequence[str]) -> SideFile:
    """config.json with the values that the merge changes, and without what it makes untrue."""
    if file.source is None or not (draft.edits or without):
        return file
    content = edit_json(file.source.read_bytes(), draft.edits, without)
    words = (*draft.told.values(), *(f"without {key}" for key in without))
    return SideFile(file.name, None, content, words)
