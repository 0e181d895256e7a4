"""Gives tests of suites a folder with a tiny base and its adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from suite_place import Place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
