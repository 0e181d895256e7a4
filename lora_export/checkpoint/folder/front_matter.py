"""Reads the metadata of a model card: the YAML between the first two lines of dashes.

Only texts and lists of texts are understood; licence and language have no other form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.yaml_lines import members_of
from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
"""How much of a card is read; its metadata must end within."""


def read_front_matter(path: Path) -> dict[str, str | tuple[str, ...] | None]:
    """Read the members at the top of a card's metadata; None for a value that is not understood.

    The result is empty when there is no such block, or when it is longer than MAX_BYTES.

    Raises:
        InputError: the file is missing or no regular file.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, MAX_BYTES, 0)
    lines = content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    return dict(members_of(lines[1 : ends[0]])) if ends else {}
