"""The README's commands do what it says, and print what it shows."""

from __future__ import annotations

import shutil
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from documents import blocks, check_console, marked, plain, run

if TYPE_CHECKING:
    from collections.abc import Mapping

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="session")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README's commands read; what they write stays there."""
    folder = tmp_path_factory.mktemp("checkout")
    for sample in ("digits", "chargpt", "vit"):
        shutil.copytree(root / "samples" / sample, folder / "samples" / sample)
    return folder


def shows(printed: list[str], page: list[str]) -> bool:
    """Whether the page has the printed lines, where a line `...` stands for one or more of them."""
    if not page or not printed:
        return page == printed
    if page[0] == "...":
        return any(shows(printed[left:], page[1:]) for left in range(1, len(printed) + 1))
    return printed[0] == page[0] and shows(printed[1:], page[1:])


def test_left_out_lines_stand_for_lines() -> None:
    assert shows(["a", "b", "c"], ["a", "...", "c"])
    assert not shows(["a", "c"], ["a", "...", "c"])
    assert not shows(["a", "b", "c", "d"], ["a", "...", "c"])


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_main_command_prints_what_the_readme_shows(
    checkout: Path, forked: Mapping[str, str]
) -> None:
    whole = marked(README, "command: main").text
    # The tests run where the package is installed already: without the part that installs it.
    install, own, rest = whole.partition("lora-export ")
    assert "pip install -c constraints.txt '.[samples]' &&" in install
    done = run(own + rest, checkout, forked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / "digits.onnx").stat().st_size > 0
    printed = done.stdout.replace(f"{checkout}/", "")
    assert shows(plain(printed), plain(marked(README, "output: main").text)), printed


def test_tests_command_uses_the_constraints(root: Path) -> None:
    text = marked(README, "command: tests").text
    assert "pip install -c constraints.txt tox" in text
    assert "tox -e tests" in text
    assert "[testenv:tests]" in (root / "tox.ini").read_text(encoding="utf-8")


def test_consoles(checkout: Path, forked: Mapping[str, str]) -> None:
    """All in one test: a block reads what an earlier one wrote."""
    consoles = [block for block in blocks(README) if block.language == "console"]
    assert consoles
    for block in consoles:
        check_console(block, checkout, repeat(forked))
