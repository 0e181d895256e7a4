"""The names of factors to which a user's globs apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Update


def keys_of(update: Update) -> Sequence[str]:
    """Return the factors' names: those of the file with a configuration, else module and role."""
    if update.terms is not None:
        return [ref.spec.name for ref in update.factors.values()]
    return [join(update.module, f"lora_{role}") for role in update.factors]
