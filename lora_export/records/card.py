"""What the model card of a result says beside the plan and the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Card:
    """The facts for README.md of a folder.

    metadata: of its front matter, in order. base: the base's name on a hub, empty when unknown.
    is_trained_on: the name is what the adapters' configurations say, which nobody could check.
    loader: the class of transformers that loads the result, empty when there is none.
    has_tokenizer: a tokenizer can be loaded from the folder. edits: what became of the base's own
    README.md, in words.
    """

    metadata: Mapping[str, str | tuple[str, ...]]
    base: str = ""
    is_trained_on: bool = False
    loader: str = ""
    has_tokenizer: bool = False
    edits: tuple[str, ...] = ()
