"""The image processor of a folder: it alone names the size of images for some models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FILES = ("preprocessor_config.json", "processor_config.json")
"""The first is the image processor's alone; the second has that of every kind of input."""


def processor_config(root: Path) -> Mapping[str, object]:
    """Return the image processor's configuration; empty where the folder has none.

    Raises:
        InputError: the file is no JSON object.
    """
    for name in _FILES:
        if root.is_dir() and (root / name).is_file():
            found = read_json_object(root / name)
            inner = found.get("image_processor", found)
            return inner if isinstance(inner, dict) else {}
    return {}
