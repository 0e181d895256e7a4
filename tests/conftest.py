"""What tests of every room may ask for. No test depends on the directory it is started from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
from detection.summary import told as detection_figures
from processes.fixtures import fork_python, fork_server, forked, real, run_folder

__all__ = [
    "fork_python",
    "fork_server",
    "forked",
    "real",
    "run_folder",
]  # fixtures that are made elsewhere
ROOT = Path(__file__).resolve().parents[1]
CAPTURES = "LORA_EXPORT_CAPTURE_CACHE"
_numbers = count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/faults, whose conftest is read too late for options."""
    text = "how many times tests/faults kill a run at a random moment"
    parser.addoption("--kills", type=int, default=200, help=text)


def pytest_configure() -> None:
    """How fast examples are drawn says how busy the machine is, and nothing about the property.

    Nothing is kept in the user's own cache, whoever exports: fixtures and other processes too.
    """
    os.environ[CAPTURES] = tempfile.mkdtemp(prefix="lora-export-captures-")
    if find_spec("hypothesis") is None:
        return  # the pages are checked without what the other tests need
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile("any machine", deadline=None, suppress_health_check=slow)
    settings.load_profile("any machine")


def pytest_unconfigure() -> None:
    """The captures of the run are of no further use."""
    shutil.rmtree(os.environ.pop(CAPTURES, ""), ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_captures(monkeypatch) -> None:
    """No test is given the graph of another, which may have planted a fault in it."""
    folder = Path(os.environ[CAPTURES]) / f"test-{next(_numbers)}"
    monkeypatch.setenv(CAPTURES, str(folder))


def pytest_terminal_summary(terminalreporter) -> None:
    """What became of the cases of parity/test_peft_matrix.py and test_detection.py, by workers."""
    results = Counter(
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "peft_matrix"
    )
    if results:
        parts = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
        terminalreporter.write_line(f"PEFT matrix: {results.total()} cases passed: {parts}")
    reports = (r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind))
    for line in detection_figures(pair for report in reports for pair in report.user_properties):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: samples/, docs/ and the README are found there, the package is installed."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files that the project may not carry: $LORA_EXPORT_SHARED, or shared/data beside it."""
    named = os.environ.get("LORA_EXPORT_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder} is absent; name its folder in LORA_EXPORT_SHARED")
    return folder
