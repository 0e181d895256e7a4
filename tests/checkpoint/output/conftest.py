"""Where the tests of this room publish to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A path that does not exist, in a folder that does."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model"
