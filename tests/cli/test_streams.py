"""stdout and stderr that are closed, full, or read no further: result and status stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

LOST = "error: the report could not be written to stdout: "
PROGRAM = "import sys; sys.argv[0] = 'lora-export'; from lora_export.cli import main; main()"
MERGE = "merge base.safetensors lora.safetensors --alpha 4 -o out.safetensors"


@pytest.fixture
def files(tmp_path):
    many = {f"layers.{number}.some_weight": torch.zeros(1) for number in range(2000)}
    save_file({"m.weight": torch.randn(12, 8), **many}, tmp_path / "base.safetensors")
    factors = {"m.lora_A": torch.randn(2, 8), "m.lora_B": torch.randn(12, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    return tmp_path


def run(folder: Path, words: str, redirections: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell, which closes and redirects its streams."""
    command = f'exec "{sys.executable}" -c "{PROGRAM}" {words} {redirections}'
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
    ids=["closed", "full"],
)
class TestStdout:
    @pytest.mark.parametrize("words", ["", " --json"], ids=["text", "json"])
    def test_a_published_result_stands(self, redirection, reason, words, files):
        ended = run(files, MERGE + words, redirection)
        assert ended.returncode == 7
        assert ended.stderr.splitlines()[-1] == f"{LOST}{reason}"
        assert "Traceback" not in ended.stderr
        with safe_open(files / "out.safetensors", "pt") as merged:
            assert len(merged.keys()) == 2001
        assert json.loads((files / "out.safetensors.lora_export.json").read_text())["outputs"]

    def test_with_nothing_to_print_nothing_is_lost(self, redirection, reason, files):
        ended = run(files, f"{MERGE} -q", redirection)
        assert ended.returncode == 0
        assert LOST not in ended.stderr

    @pytest.mark.parametrize("words", ["inspect lora.safetensors", f"{MERGE} --dry-run"])
    def test_a_report_that_is_all_there_is(self, redirection, reason, words, files):
        ended = run(files, words, redirection)
        assert ended.returncode == 7
        assert ended.stderr.endswith(f"{LOST}{reason}\n")

    def test_a_refusal_keeps_its_status(self, redirection, reason, files):
        (files / "lora.safetensors").write_bytes(b"\0" * 20)
        ended = run(files, MERGE, redirection)
        assert ended.returncode == 3
        assert "Traceback" not in ended.stderr

    def test_no_file_gets_the_number_of_a_closed_stream(self, redirection, reason, files):
        ended = run(files, f"{MERGE} 2>&- <&-", redirection)
        assert ended.returncode == 7
        with safe_open(files / "out.safetensors", "pt") as merged:
            assert len(merged.keys()) == 2001

    @pytest.mark.parametrize("words", ["--help", "--version", "merge --help"])
    def test_help(self, redirection, reason, words, files):
        ended = run(files, words, redirection)
        assert ended.returncode == 7
        assert ended.stderr == f"{LOST}{reason}\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("words", "status"),
    [(f"{MERGE} --dry-run", 0), ("merge base.safetensors none.pt -o o", 3), ("bogus", 2)],
)
def test_a_stderr_that_cannot_be_written_changes_no_status(redirection, words, status, files):
    assert run(files, words, redirection).returncode == status


@pytest.mark.parametrize("words", ["-v", "--json", ""])
def test_a_reader_that_stops_is_no_failure(words, files):
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PROGRAM, "inspect", "base.safetensors", *words.split()]
    with subprocess.Popen(
        command, cwd=files, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("words", ["--help", "merge --help", "explain", MERGE])
def test_a_reader_that_has_gone_is_no_failure(words, files):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    ended = subprocess.run(command, cwd=files, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False)


def test_a_terminal_without_the_letters_of_a_name(files):
    (files / "base.safetensors").rename(files / "Größe.safetensors")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", PROGRAM, "inspect", "Größe.safetensors"]
    ended = subprocess.run(
        command, cwd=files, env={**os.environ, **plain}, capture_output=True, check=True
    )
    assert rb"Gr\udcc3\udcb6\udcc3\udc9fe.safetensors" in ended.stdout
