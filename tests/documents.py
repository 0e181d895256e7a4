"""Read the commands out of a Markdown page and run them as its reader would.

A fenced block is found by its language, or by a comment before it: `<!-- command: main -->`. In a
`console` block every line `$ command` is run; the lines up to the next `$` are what it prints. A
command must exit with 0, unless the next one is `echo $?`.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ([a-z]+: [^>]+?) -->\n\Z")
# Numbers and digests differ from machine to machine, and with their width the columns.
_NUMBER = re.compile(r"\b[0-9a-f]{12,}\b|[-+]?\d[\d.,]*(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the comment right before it, if any."""

    language: str
    text: str
    mark: str


@dataclass(frozen=True)
class Command:
    """One command of a console block, and what the page says it prints."""

    line: str
    output: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        found.append(Block(match[2], match[3], mark[1] if mark else ""))
    return found


def marked(page: Path, mark: str) -> Block:
    [block] = [block for block in blocks(page) if block.mark == mark]
    return block


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line that ends in a backslash goes on in the next."""
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        joined = re.sub(r"\\\n\s*", "", part)
        line, _, output = joined.partition("\n")
        found.append(Command(line, output))
    return found


def run(
    line: str, folder: Path, environment: Mapping[str, str], *, status_before: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `line` in `folder`; `environment` says which Python and scripts are first on the path."""
    return subprocess.run(
        ["bash", "-c", f"(exit {status_before})\n{line}"],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def check_console(block: Block, folder: Path, environments: Iterator[Mapping[str, str]]) -> None:
    """Run every command of `block` in `folder`, one after the other, and hold it to the page.

    Each command takes the next of `environments`.
    """
    asked = commands(block)
    assert asked, "a console block without a command"
    status = 0
    for position, command in enumerate(asked):
        done = run(command.line, folder, next(environments), status_before=status)
        status = done.returncode
        following = asked[position + 1].line if position + 1 < len(asked) else ""
        if following != "echo $?":
            assert status == 0, f"$ {command.line}\n{done.stdout}{done.stderr}"
        if command.output.strip():
            # A reader sees both streams; a command that prints to both is not used on a page.
            printed = done.stdout or done.stderr
            keep = command.line == "echo $?"
            same = plain(printed, numbers=keep) == plain(command.output, numbers=keep)
            assert same, f"$ {command.line}\nprinted:\n{printed}\nthe page:\n{command.output}"


def plain(text: str, *, numbers: bool = False) -> list[str]:
    """The lines of `text` less what differs between machines: numbers, the spaces of columns."""
    if not numbers:
        text = _NUMBER.sub("#", text)
    # Where a line is wrapped depends on how long its numbers are. Lines that are indented by two or
    # more are joined to the one before, whether it was wrapped or not.
    text = re.sub(r"\n {2,}(?=\S)", " ", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]
