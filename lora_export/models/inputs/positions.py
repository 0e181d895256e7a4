"""How many tokens a table of positions takes; some tables begin behind the padding token's number.

Where a table begins is a fact of the code that reads it, and no configuration names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_NUMBERS_BEHIND_PADDING = "create_position_ids_from_inputs_embeds"
"""The method of an embeddings module of transformers that numbers positions as RoBERTa does.

The first token has the position `padding_idx + 1`. transformers 5.24 has the method in each module
that does so, and in no other.
"""


def positions(text: Any, model: nn.Module) -> int | None:
    """Return the tokens that fit into the table of positions; None where there is no table.

    Tables of RoBERTa and its kin lose the places up to the padding token's number. Other models
    may pad with any token, and lose none.

    Args:
        text: the configuration of the text model.
        model: the model, which may be on the meta device.
    """
    size = getattr(text, "max_position_embeddings", None)
    if not isinstance(size, int):
        return None
    return size - max(_lost_places(model, size), default=0)


def _lost_places(model: nn.Module, size: int) -> Iterator[int]:
    """Yield the places in front of the first token, of each table of `size` rows."""
    for module in model.modules():
        table: Any = getattr(module, "position_embeddings", None)
        if not hasattr(module, _NUMBERS_BEHIND_PADDING) or table is None:
            continue
        if len(table.weight) == size and table.padding_idx is not None:
            yield table.padding_idx + 1
