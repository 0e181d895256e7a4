"""The files around the weights of a result: configuration, tokenizer, model card.

They are the base's, byte for byte, except where the merge requires an edit. Every edit is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.json_edit import edit_json
from lora_export.planning.folder.card_edits import CARD_NAME, plan_card
from lora_export.planning.folder.special_tokens import check_tokenizer
from lora_export.planning.folder.stale_claims import stale_claims
from lora_export.planning.folder.tokenizers import plan_tokenizer
from lora_export.records import SideFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.records import Card


def plan_folder(
    given: Given, vocabulary: tuple[int, int] | None, edits: ConfigEdits, findings: Findings
) -> tuple[tuple[SideFile, ...], Card | None]:
    """Return the side files of the result, and its model card, which is written after the proof.

    vocabulary: the numbers of tokens before and after the merge; None where both are the same.
    """
    files = plan_tokenizer(given, vocabulary, findings)
    check_tokenizer(files, vocabulary, findings)
    gone = stale_claims(given.base, findings)
    files = [
        _edited(file, edits, gone) if file.name == "config.json" else file
        for file in files
        if file.name != CARD_NAME
    ]
    return tuple(files), plan_card(given.base, given.adapters, files, edits.result())


def _edited(file: SideFile, edits: ConfigEdits, without: Sequence[str]) -> SideFile:
    """Return config.json with the values that the merge changes.

    without: keys that are no longer true and are removed.
    """
    if file.source is None or not (edits.values or without):
        return file
    content = edit_json(file.source.read_bytes(), edits.values, without)
    words = (*edits.words.values(), *(f"without {key}" for key in without))
    return SideFile(file.name, None, content, words)
