"""What an update does to a weight: one file a layer kind, found by walking this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LayerKind", "Reading", "Shapes", "all_kinds"]


@cache
def all_kinds() -> Mapping[str, LayerKind]:
    """Find every layer kind by walking this folder: the KIND of each module, by the kind's name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        kind = getattr(module, "KIND", None)
        if isinstance(kind, LayerKind):
            found[kind.name] = kind
    return found
