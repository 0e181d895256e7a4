"""A model's folder as transformers must see it: without an adapter that lies in it as well.

Where PEFT is installed, from_pretrained loads an adapter that lies beside a model. The base of the
proof would then hold an update that is not in the plan.
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
    """Give `root`, or where it holds an adapter, a folder of links without the adapter's config.

    transformers finds an adapter by that file. The links are removed afterwards. Files that are
    mapped into memory stay.
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
