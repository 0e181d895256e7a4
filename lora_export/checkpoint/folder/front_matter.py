"""Reads the metadata of a model card: the YAML between the first two lines of dashes.

Only texts and lists of texts are understood, as licence and language are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.yaml_lines import members_of
from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20


def read_front_matter(path: Path) -> dict[str, str | tuple[str, ...] | None]:
    """The members at the top of a card's metadata; None for a value that is not understood.

    Empty where there is no such block, or it does not end within the first megabyte.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, MAX_BYTES, 0)
    lines = content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    return dict(members_of(lines[1 : ends[0]])) if ends else {}
