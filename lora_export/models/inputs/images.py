"""The images that a model takes: their size, from the configurations that may name it.

The size stands in config.json, in a configuration inside it, or with the image processor alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from lora_export.records import InputSpec

USUAL = 224
"""Pixels of a side where no configuration names a size."""

_INNER = ("vision_config", "encoder", "backbone_config", "backbone")
"""Where a configuration holds that of its image model, the first of them first."""


def image_input(
    config: Any, processor: Callable[[], Mapping[str, object]], batch: int | str = "batch"
) -> InputSpec:
    """Return the input of images, (batch, channels, height, width).

    Args:
        config: the model's transformers configuration.
        processor: reads the image processor's; it is called where no other names a size.
        batch: the dimension that counts images.
    """
    height, width = _size(config, processor)
    channels = next(_found(config, "num_channels"), 3)
    return InputSpec("pixel_values", "float32", (batch, channels, height, width))


def _size(config: Any, processor: Callable[[], Mapping[str, object]]) -> tuple[int, int]:
    named = map(_sides, _found(config, "image_size"))
    sizes = chain(named, _processed(processor))
    return next((sides for sides in sizes if sides), (USUAL, USUAL))


def _processed(processor: Callable[[], Mapping[str, object]]) -> Iterator[tuple[int, int] | None]:
    """Yield the size of the images that a processor makes."""
    found = processor()
    if found.get("do_center_crop"):
        yield _sides(found.get("crop_size"))
    yield _sides(found.get("size"))


def _found(config: Any, name: str) -> Iterator[Any]:
    """Yield the values of a member that a configuration and those inside it have."""
    value = getattr(config, name, None)
    if value is not None:
        yield value
    for inner in _INNER:
        held = getattr(config, inner, None)
        if held is not None and not isinstance(held, str):
            yield from _found(held, name)


def _sides(value: object) -> tuple[int, int] | None:
    """Return (height, width) of a size in one of its forms; None for another form.

    A processor that scales the shortest edge gives images of many shapes: a square is one of them.
    """
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        value = (value.get("height", edge), value.get("width", edge))
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
        return sides
    return None
