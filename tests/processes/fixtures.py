"""What a test asks for that runs the program: by a fork, unless starting it is the point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes.client import IMPORTED, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What the commands on the pages, the samples and the benchmarks import.
MODULES = (
    *IMPORTED,
    "loralib",
    "peft",
    "sklearn.datasets",
    "transformers:ViTForImageClassification",
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, request) -> Path:
    """Return a folder of this run of pytest, one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def fork_server(run_folder: Path) -> Iterator[Server]:
    """Yield the fork server of this run of pytest, one for all workers."""
    server = Server.join(run_folder, MODULES)
    yield server
    server.close()


@pytest.fixture(scope="session")
def forked(fork_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which the fork server runs `lora-export` and `python`."""
    programs = fork_server.write_programs(tmp_path_factory.mktemp("programs"))
    return {**os.environ, **programs}


@pytest.fixture(scope="session")
def real() -> dict[str, str]:
    """Return the environment in which `lora-export` and `python` are processes of this Python."""
    scripts = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def fork_python(forked: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs `python WORD...` by a fork and gives the finished process, with its text."""

    def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        program = forked["PATH"].partition(os.pathsep)[0]
        return subprocess.run(
            [f"{program}/python", *map(str, words)],
            cwd=cwd,
            env=forked,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
