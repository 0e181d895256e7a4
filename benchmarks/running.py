"""Run a command and measure its time, its processor time, and its peak of anonymous memory.

Anonymous memory (`RssAnon`) is what a process really takes from the machine. The usual figure,
`VmHWM` or `ru_maxrss`, also counts pages of mapped files, which the kernel drops when it needs
them: torch's libraries, and a base that is read through mmap. VmHWM is given as an upper bound, and
not `ru_maxrss`, which starts from the memory of the process that forked. The kernel keeps no
high-water mark of RssAnon. So it is sampled, every 5 ms, over the process and its children. A
shorter peak can be missed, but not a buffer that is filled and used. Sampling takes processor time,
and so the runs that are sampled are not timed.

A sampled run that is about to use up the machine's memory is stopped. Otherwise the kernel would
end a process of its choice.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INTERVAL = 0.005
SHARE = 0.8  # of the memory that was available when a run began
_FIELD = re.compile(r"^(RssAnon|VmHWM|MemAvailable):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """The time and the memory of one run."""

    #: Seconds.
    wall: float
    #: Processor seconds, with the children's.
    cpu: float
    #: The peak of RssAnon in bytes; 0 where the run was not sampled.
    anonymous: int = 0
    #: The peak of VmHWM in bytes; 0 where the run was not sampled.
    high_water: int = 0
    #: Whether the run was stopped at these peaks, since it needed more memory than there is.
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Peaks:
    anonymous: int = 0
    high_water: int = 0
    stopped: bool = False


def lora_export() -> list[str]:
    """Return the program of this Python's environment, else the one on PATH."""
    own = Path(sys.executable).with_name("lora-export")
    found = str(own) if own.exists() else which("lora-export")
    if not found:
        sys.exit("lora-export is not installed")
    return [found]


def run(command: Sequence[str], *, sampled: bool = False, sync: Path | None = None) -> Run:
    """Run `command` to its end; a failure ends the benchmark with the command's stderr.

    sync: a path whose file system is flushed to disk as part of the run.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # An installed program has its bytecode; without it a merge would compile itself in every run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        peaks = _watch(process.pid) if sampled else _Peaks()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if sync:
            subprocess.run(["/bin/sync", "-f", str(sync)], check=True)
        wall = time.perf_counter() - started
        if process.returncode and not peaks.stopped:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{text}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, peaks.anonymous, peaks.high_water, peaks.stopped)


def _watch(pid: int) -> _Peaks:
    """Return the peaks of RssAnon and VmHWM over the process and its children, until it ends."""
    anonymous = high_water = 0
    most = SHARE * _fields(Path("/proc/meminfo"))["MemAvailable"]
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        pids = list(_family(pid))
        family = [_fields(Path(f"/proc/{one}/status")) for one in pids]
        anonymous = max(anonymous, sum(one.get("RssAnon", 0) for one in family))
        high_water = max(high_water, sum(one.get("VmHWM", 0) for one in family))
        if anonymous > most:
            _stop(pids)
            return _Peaks(anonymous, high_water, stopped=True)
        time.sleep(INTERVAL)
    return _Peaks(anonymous, high_water)


def _stop(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in _listed(Path(f"/proc/{pid}/task")):
        for child in _text(task / "children").split():
            yield from _family(int(child))


def _fields(path: Path) -> dict[str, int]:
    return {name: int(kilobytes) << 10 for name, kilobytes in _FIELD.findall(_text(path))}


def _listed(folder: Path) -> list[Path]:
    """Return the entries of a folder of /proc; none when the process has just ended."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """Return the text of a file of /proc; empty when the process has just ended."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
