"""A command by a fork gives what a real process gives: every byte, the status, both streams."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

MERGE = "lora-export merge base.safetensors lora.pt --alpha 32 --enable-lora 1,0,1"
TWICE = "import sys; print(sys.argv[1:]); print('to stderr', file=sys.stderr); sys.exit(3)"
COMMANDS = {
    "a merge": f"{MERGE} --fan-in-fan-out -o merged.safetensors",
    "a merge as JSON": f"{MERGE} --fan-in-fan-out -o merged.safetensors --json",
    "a missing fact": "lora-export merge base.safetensors lora.pt -o merged.safetensors",
    "an unknown option": "lora-export merge --no-such-option",
    "no such file": "lora-export inspect gone.safetensors",
    "help, cut short": "lora-export merge --help | head -3",
    "a script's exit status": f'python -c "{TWICE}" a b; echo $?',
    "a script that fails": 'python script.py "$(pwd | wc -l)"; echo $?',
    "a last word": "python -c \"raise SystemExit('the end')\"",
    "a warning that is an error": "python -W error -c \"import warnings; warnings.warn('stop')\"",
    "a signal": 'python -c "import os; os.kill(os.getpid(), 9)"; echo $?',
    "at exit": "python -c \"import atexit; atexit.register(print, 'late'); print('early')\"",
}
# What differs between two real processes: free space, memory, seconds, a process's number.
OTHER = re.compile(
    rb'"(free|memory)": \d+|(?<=line 1: ) *\d+|^seconds: .*(?:\n  .*)*$|"seconds": \{[^}]*\}',
    re.MULTILINE,
)
# A stage that takes longer than two seconds is named on stderr.
STAGES = re.compile(rb"^[a-z ]+: \d+ s( so far|, .*)\n", re.MULTILINE)
SCRIPT = "import beside, sys\nif __name__ == '__main__':\n    beside.fail(sys.argv)\n"
BESIDE = "def fail(words):\n    raise ValueError(words)\n"


def run(line, folder, environment, chargpt):
    folder.mkdir()
    for name in ("base.safetensors", "lora.pt"):
        shutil.copy(chargpt / name, folder)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "beside.py").write_text(BESIDE)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    printed = [
        STAGES.sub(b"", stream.replace(str(folder).encode(), b"FOLDER"))
        for stream in (done.stdout, done.stderr)
    ]
    return done.returncode, *(OTHER.sub(b"#", stream) for stream in printed), files


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_fork_does_what_a_process_does(line, root, tmp_path, real, forked):
    chargpt = root / "samples" / "chargpt"
    expected = run(line, tmp_path / "real", real, chargpt)
    found = run(line, tmp_path / "forked", forked, chargpt)
    assert found == expected
    assert any(expected[1:3])
    assert ("merged.safetensors" in expected[3]) == ("--fan-in-fan-out" in line)


def test_the_server_has_one_thread(fork_server):
    assert fork_server.threads == 1, "a fork would not be a clean copy"
