"""Files as the tests of this room need them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lora_export


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter that sees the package under test; the finished process."""

    def run(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        process = start_python(code, *arguments)
        out, err = process.communicate(timeout=60)
        assert not check or process.returncode == 0, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def start():
    return start_python


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    package = str(Path(lora_export.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": package},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
