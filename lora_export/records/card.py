"""The content of a result's model card that comes from neither the plan nor the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Card:
    """The facts for README.md of a folder."""

    metadata: Mapping[str, str | tuple[str, ...]]
    """The members of the front matter, in order."""
    base: str = ""
    """The base's name on a hub; "" when unknown."""
    is_trained_on: bool = False
    """Whether the name comes from the adapters' configs and could not be checked."""
    loader: str = ""
    """The class of transformers that loads the result; "" when there is none."""
    has_tokenizer: bool = False
    """Whether a tokenizer can be loaded from the folder."""
    edits: tuple[str, ...] = ()
    """What was changed in the base's own README.md, for the user."""
