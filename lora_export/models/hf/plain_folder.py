"""A model's folder as transformers must see it: without an adapter that lies in it as well.

from_pretrained loads the adapter beside a model, without being asked, where PEFT is installed. The
proof's base would then hold an update that no plan knows.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_adapter(root: Path | None) -> Iterator[Path | None]:
    """`root` itself, or where it holds an adapter, a folder of links to all but its configuration.

    transformers finds an adapter by that file. The links are gone afterwards; what is mapped into
    memory stays.
    """
    if root is None or not (root / ADAPTER_CONFIG).exists():
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="lora-export-") as made:
        folder = Path(made)
        for entry in root.resolve().iterdir():
            if entry.name != ADAPTER_CONFIG:
                (folder / entry.name).symlink_to(entry)
        yield folder
