"""What an update does to a weight: one file a layer kind, found by walking this folder."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes
from lora_export.plug_ins import find_plug_ins

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LayerKind", "Reading", "Shapes", "all_kinds"]


@cache
def all_kinds() -> Mapping[str, LayerKind]:
    """Find every layer kind by walking this folder: the KIND of each module, by the kind's name."""
    return {kind.name: kind for kind in find_plug_ins(__name__, __path__, "KIND", LayerKind)}
