"""Names in files that forge lines of a report, or drive the terminal: shown, and nothing more."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import lora_export
from lora_export.cli import main

FORGED = "\x1b[2J\x1b[Hchecks\n  ok  everything\nPROVED: all\u202e\r"
"""A name that clears the screen, and forges lines of a report."""

ONE_LINE = "\x1b[2J\x1b[H\u2028  ok  everything\u202e\r"
"""The same without a line feed, so that the name of a module may be read from it."""

PACKAGE = Path(lora_export.__file__).parent


def factors(module: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A": torch.randn(2, 6, generator=generator),
        f"{module}.lora_B": torch.randn(8, 2, generator=generator),
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.weight": torch.randn(8, 6, generator=draw) for name in (FORGED, ONE_LINE, "fc")
    }
    save_file(weights, tmp_path / "base.safetensors")
    both = factors(ONE_LINE, draw) | factors("fc", draw)
    save_file(both, tmp_path / "lora.safetensors")
    save_file(both | factors(FORGED, draw), tmp_path / "forged.safetensors")
    torch.save({f"{FORGED}.weight": 1}, tmp_path / f"{FORGED}.pt")
    (tmp_path / f"{FORGED}.safetensors").write_bytes((tmp_path / "base.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


MERGE = ("lora.safetensors", "--alpha", "4")
BOTH = ("base.safetensors", "forged.safetensors")
COMMANDS = {
    "merge": ("merge", "base.safetensors", *MERGE, "-o", "out.safetensors"),
    "merge, every module": ("merge", "base.safetensors", *MERGE, "-o", "o.safetensors", "-v"),
    "plan": ("merge", "base.safetensors", *MERGE, "-o", "out.safetensors", "--dry-run", "-v"),
    "adapter": ("inspect", "lora.safetensors", "-v"),
    "base": ("inspect", f"{FORGED}.safetensors", "-v"),
    "tensor of no base": ("merge", *BOTH, "--alpha", "4", "-o", "out.safetensors"),
    "forged adapter": ("inspect", "forged.safetensors", "-v"),
    "verify": ("verify", "base.safetensors", "--base", *BOTH[:1], "--adapter", *MERGE),
    "without alpha": ("merge", f"{FORGED}.safetensors", MERGE[0], "-o", f"{FORGED}out.safetensors"),
    "file without tensors": ("inspect", f"{FORGED}.pt"),
    "no file": ("inspect", f"{FORGED}.bin"),
    "usage": ("inspect", "base.safetensors", FORGED),
    "debug": ("inspect", f"{FORGED}.bin", "--debug"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_name_begins_no_line_and_sends_nothing_to_the_terminal(words, files):
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.output.splitlines()
    assert all(line.isprintable() for line in lines), result.output
    assert not any(line.strip().startswith(("ok  everything", "PROVED: all")) for line in lines)
    assert lines.count("checks") <= 1
    shown = result.output.replace("\n", "")
    assert r"\x1b[2J\x1b[H" in shown


def test_json_has_the_true_names(files):
    planned = CliRunner().invoke(main, [*COMMANDS["plan"], "--json"])
    assert planned.stdout.isascii()
    texts = [*_texts(json.loads(planned.stdout)["plan"])]
    assert f"{ONE_LINE}.weight" in texts
    assert f"{FORGED}.weight" in texts
    refused = CliRunner().invoke(main, [*COMMANDS["no file"], "--json"])
    assert json.loads(refused.stdout)["error"]["where"] == f"{FORGED}.bin"


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from [key, *_texts(item)]
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def test_a_command_that_is_suggested_may_be_copied(files):
    result = CliRunner().invoke(main, COMMANDS["without alpha"])
    assert result.exit_code == 2
    [command] = [line for line in result.stderr.splitlines() if "lora-export merge" in line]
    command = command[command.index("lora-export merge") :]
    ran = subprocess.run(
        ["bash", "-c", f"lora-export() {{ printf '%s\\0' \"$@\"; }}; {command}"],
        capture_output=True,
        check=True,
    )
    words = ran.stdout.decode().split("\0")
    assert words[:3] == ["merge", f"{FORGED}.safetensors", "lora.safetensors"]
    assert f"{FORGED}out.safetensors" in words


def test_what_is_printed_passes_one_place():
    """A line break in a name is told from one of ours only where lines are joined."""
    printers = {"click.echo", "click.secho", "print", "'\\n'.join", "traceback.print_exc"}
    found = {
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for path in [*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("report/*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in printers
    }
    assert sorted(found) == [
        "cli/_streams.py: click.echo",
        "cli/explain_command.py: '\\n'.join",  # our own words
        "cli/explain_command.py: click.echo",
        "report/columns.py: '\\n'.join",  # wraps lines that are joined already
        "report/model_card.py: '\\n'.join",  # a file, whose names are shown one by one
    ]
