"""The shim, the fork server and the count of fault points, shared by the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from faults.driver import Pool, build_shim

POINTS = pytest.StashKey[dict[str, tuple[int, int, int]]]()


def pytest_configure(config):
    config.stash[POINTS] = {}


@pytest.fixture(scope="session")
def fault_root():
    """A folder in memory where there is one: thousands of syncs are slow on a disk."""
    memory = Path("/dev/shm")  # noqa: S108 - only its file system is wanted
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="lora-export-faults-", dir=place)).resolve()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shim(run_folder):
    try:
        return build_shim(run_folder)
    except FileNotFoundError:
        pytest.skip("no C compiler: the shim that breaks system calls cannot be built")


@pytest.fixture(scope="session")
def pool(shim, run_folder, request):
    is_worker = hasattr(request.config, "workerinput")  # the other workers keep the rest busy
    pool = Pool(run_folder, shim, 1 if is_worker else os.cpu_count() or 1)
    yield pool
    pool.close()


@pytest.fixture
def count_points(request):
    """Note how many fault points, torn outputs and states for the next run there were."""

    def count(name, number, torn, states):
        request.config.stash[POINTS][name] = (number, torn, states)

    return count


def pytest_terminal_summary(terminalreporter, config):
    counted = config.stash.get(POINTS, {})
    if not counted:
        return
    terminalreporter.section("fault points")
    for name, (number, torn, states) in counted.items():
        terminalreporter.write_line(f"{number:6,}  {torn} torn  {states:4} states  {name}")
    total, torn, states = (sum(column) for column in zip(*counted.values(), strict=True))
    line = f"{total:6,} fault points, {torn} torn; {states:,} states for the next run"
    terminalreporter.write_line(line)
