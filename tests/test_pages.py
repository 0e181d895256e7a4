"""The commands and the Python of the tutorial and the how-to pages run, in their order."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from documents import blocks, check_console

from lora_export.cli import main as program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
RUN = [
    *(ROOT / "docs" / name for name in ("tutorial.md", "report.md")),
    *sorted(ROOT.glob("docs/how-to/*.md")),
]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/*/*.md")])


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    for sample in ("chargpt", "vit"):
        shutil.copytree(root / "samples" / sample, tmp_path / "samples" / sample)
    return tmp_path


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_what_a_page_shows_runs(
    page: Path, checkout: Path, forked: Mapping[str, str], fork_python: Callable[..., Any]
) -> None:
    """Blocks of one page build on each other, so that they run in one folder and in order."""
    ran = 0
    for block in blocks(page):
        if block.language == "console":
            check_console(block, checkout, repeat(forked))
        elif block.language == "python" and not block.text.startswith("INPUTS"):
            (checkout / "page.py").write_text(block.text)
            done = fork_python("page.py", cwd=checkout)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        else:
            continue
        ran += 1
    assert ran


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `lora-export` command in a block that is not run."""
    for block in blocks(page):
        if block.language not in ("sh", "yaml"):
            continue
        joined = re.sub(r"\\\n\s*", "", block.text)
        for line in re.findall(r"(?:^|&& |- run: |\$ )\s*(lora-export .*)$", joined, re.MULTILINE):
            yield shlex.split(line.partition(" || ")[0].partition(" &&")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_with_a_readers_own_files_are_understood(page: Path) -> None:
    for _, *words in shell_commands(page):
        with click.Context(program) as group:
            name, command, rest = program.resolve_command(group, words)
            assert command, words
            command.make_context(name, rest, parent=group)


def test_a_wrong_command_on_a_page_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nlora-export merge base adapter \\\n    --outptu x && echo\n```\n")
    with pytest.raises(click.NoSuchOption, match="--outptu"):
        test_commands_with_a_readers_own_files_are_understood(page)
