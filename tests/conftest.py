"""What tests of every room may ask for. No test depends on the directory it is started from."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections import Counter
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from detection.summary import told as detection_figures
from hostile.summary import told as hostile_figures
from processes.fixtures import fork_python, fork_server, forked, real, run_folder
from whole_run.order import ending_with_short
from whole_run.sampling import VARIABLE, is_drawn, set_seed
from whole_run.shared_captures import SharedCaptures, install
from whole_run.small_networks import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "fork_python",
    "fork_server",
    "forked",
    "real",
    "run_folder",
]  # fixtures that are made elsewhere
ROOT = Path(__file__).resolve().parents[1]
CAPTURES = "LORA_EXPORT_CAPTURE_CACHE"
PASSES = "LORA_EXPORT_PARITY_CACHE"
_numbers = count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/faults, whose conftest is read too late for options."""
    text = "how many times tests/faults kill a run at a random moment"
    parser.addoption("--kills", type=int, default=200, help=text)
    text = "how many inputs tests/hostile makes by chance, with -m hostile"
    parser.addoption("--examples", type=int, default=30_000, help=text)
    text = "the seed of what a default run samples: see sampling.py"
    parser.addoption("--sample-seed", default=None, help=text)
    text = "capture every graph anew, where tests share captures otherwise"
    parser.addoption("--own-captures", action="store_true", help=text)


SHARED = "LORA_EXPORT_TEST_CAPTURES"
_shared: list[SharedCaptures] = []
_watch = Watch()


def pytest_configure(config: pytest.Config) -> None:
    """How fast examples are drawn says how busy the machine is, and nothing about the property.

    Nothing is kept in the user's own cache, whoever exports: fixtures and other processes too.
    """
    os.environ[CAPTURES] = tempfile.mkdtemp(prefix="lora-export-captures-")
    os.environ[PASSES] = str(Path(os.environ[CAPTURES]) / "passes")
    # Python's collector goes through the million objects of torch and transformers again and again,
    # which takes a twentieth of a run. It does so a hundred times as rarely.
    gc.set_threshold(10_000, 20, 50)
    if find_spec("hypothesis") is None:
        return  # the pages are checked without what the other tests need
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile("any machine", deadline=None, suppress_health_check=slow)
    settings.load_profile("any machine")
    if not hasattr(config, "workerinput"):  # workers get the variables of the process they serve
        set_seed(config.getoption("--sample-seed"))
        os.environ[SHARED] = tempfile.mkdtemp(prefix="lora-export-shared-")
    allowed = not config.getoption("--own-captures")
    _shared.append(install(Path(os.environ[SHARED]), is_allowed=allowed))


@pytest.hookimpl(trylast=True)  # what is left out is no longer among them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let no worker have long tests left when the others have none: see order.py."""
    if hasattr(config, "workerinput"):
        items[:] = ending_with_short(items, config.workerinput["workercount"])


def pytest_collection_finish() -> None:
    """Know the modules before the first fixture of a module captures a graph."""
    for shared in _shared:
        shared.look()


def pytest_report_header() -> str:
    """Name the seed of what is sampled: --sample-seed gives it back."""
    return f"sample seed: {os.environ.get(VARIABLE, 'none')}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """The captures of the run are of no further use."""
    shutil.rmtree(os.environ.pop(CAPTURES, ""), ignore_errors=True)
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED, ""), ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_captures(request, monkeypatch) -> None:
    """Give the test a cache of its own, as a user has, and the graphs that tests share behind it.

    No test is given the graph of another, which may have planted a fault in it: see
    shared_captures.py.
    """
    folder = Path(os.environ[CAPTURES]) / f"test-{next(_numbers)}"
    monkeypatch.setenv(CAPTURES, str(folder))
    monkeypatch.setenv(PASSES, str(folder / "passes"))
    for shared in _shared:
        shared.look()
        is_apart = request.node.get_closest_marker("own_captures") is not None
        monkeypatch.setattr(shared, "is_on", shared.is_allowed and not is_apart)


@pytest.fixture(autouse=True)
def _small_networks(request) -> Iterator[None]:
    """Fail a test that builds a large transformers model and does not say so."""
    _watch.begin()
    yield
    seen = _watch.take()
    if request.node.get_closest_marker("large_network") or request.node.get_closest_marker("slow"):
        return
    assert not seen, f"use a smaller network, or the marker large_network: {seen[0]}"


@pytest.fixture
def streamed(monkeypatch) -> None:
    """Let models of Hugging Face folders be read while they run, as only large ones are."""
    from lora_export.models import memory
    from lora_export.models.streaming import blocks, placing

    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    monkeypatch.setattr(placing, "HELD_ELEMENTS", 0)
    monkeypatch.setattr(blocks, "ELEMENTS", 256)


@pytest.fixture
def proven_by_weights(monkeypatch) -> Callable[[], None]:
    """Return a function after which merges of this test are proven by their weights alone."""

    def leave_out() -> None:
        from lora_export.api import merging
        from lora_export.api.proof.model_proof import Proven

        monkeypatch.setattr(merging, "prove_further", lambda _job, _merged, checks: Proven(checks))

    return leave_out


@pytest.fixture
def is_proven(request, proven_by_weights) -> bool:
    """Tell whether merges of this test are proven as a model, too; by weights they always are.

    A third of the default run's cases are, by the run's seed, and every slow one.
    """
    proven = request.node.get_closest_marker("slow") is not None or is_drawn(request.node.name)
    if not proven:
        proven_by_weights()
    return proven


@pytest.fixture(scope="session")
def run_captures() -> SharedCaptures:
    """Return the captures that the tests of this run share."""
    return _shared[0]


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
    for line in hostile_figures(
        pair for r in terminalreporter.getreports("passed") for pair in r.user_properties
    ):
        terminalreporter.write_line(line)
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
