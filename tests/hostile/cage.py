"""Runs one call in a process of its own: measured, watched, and stopped where it does not end.

The process is a fork of this one, so the libraries are imported already and only the call counts.
An audit hook notes what no reader of a file may do. It cannot be taken off again, so it lies in the
fork alone.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import sysconfig
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.errors import LoraExportError

if TYPE_CHECKING:
    from collections.abc import Callable

CPU_SECONDS = 2.0
"""Processor seconds that an input may take until it is refused (issue 16)."""

MEGABYTES = 200
"""Memory above what was taken before, in MB (issue 16)."""

STOP_SECONDS = 30
"""Processor seconds after which the system stops the fork."""

_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "pty.spawn", "subprocess.Popen", "socket.", "urllib.", "http.", "ftplib.", "smtplib.",
    "ctypes.dlopen", "pickle.find_class", "webbrowser.", "code.__new__",
)  # fmt: skip
"""How the names of forbidden audit events begin."""

_TRUSTED = tuple(
    {
        "<",
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).resolve().parents[2]),
    }
)
"""Where code may lie that is run: `<string>` is what dataclasses and named tuples are made of."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Outcome:
    """What became of a call."""

    kind: str
    """A status of LoraExportError by its word, "accepted", or "traceback", "stopped"."""
    text: str = ""
    """The first line of the refusal, or the last of the traceback."""
    value: str = ""
    """What an accepted call returned, as text."""
    cpu: float = 0.0
    memory: float = 0.0
    """In MB above the start."""
    events: list[str] = field(default_factory=list)
    """What the audit hook forbids."""

    @property
    def over(self) -> str:
        """Return which limit the call passed; "" where it passed none."""
        if self.cpu > CPU_SECONDS:
            return f"{self.cpu:.1f} processor seconds"
        return f"{self.memory:.0f} MB" if self.memory > MEGABYTES else ""


class Audit:
    """Notes forbidden events; only files below one folder may be written."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self._folder = f"{folder.resolve()}{os.sep}"

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            self._opened(*arguments)
        elif event in {"exec", "compile"}:
            code = arguments[0] if event == "exec" else arguments[1]
            name = getattr(code, "co_filename", code)
            name = name.decode() if isinstance(name, bytes) else str(name)
            if not name.startswith(_TRUSTED):
                self.events.append(f"{event} {name}")
        elif event.startswith(_FORBIDDEN) and arguments != (None,):  # dlopen(None): this process
            self.events.append(f"{event} {arguments!r}"[:200])

    def _opened(self, path: object, _mode: object, flags: object) -> None:
        is_write = isinstance(flags, int) and flags & _WRITING
        if not is_write or not isinstance(path, (str, bytes)) or os.fsdecode(path) == os.devnull:
            return
        whole = os.path.realpath(os.fsdecode(path))
        if not whole.startswith((self._folder, "/proc/")):
            self.events.append(f"written {whole}"[:200])


def run(call: Callable[[], object], folder: Path) -> Outcome:
    """Do the call in a fork. Only files below `folder` may be written."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _serve(call, folder, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status, used = os.wait4(child, 0)
    if content:
        return Outcome(**json.loads(content))
    return Outcome("stopped", f"wait status {status}", cpu=used.ru_utime + used.ru_stime)


def _serve(call: Callable[[], object], folder: Path, writer: int) -> None:
    try:
        gc.freeze()  # what the parent made is not gone through again
        resource.setrlimit(resource.RLIMIT_CPU, (STOP_SECONDS, STOP_SECONDS))
        outcome = _measured(call, Audit(folder))
        os.write(writer, json.dumps(asdict(outcome)).encode())
    finally:
        os._exit(0)


def _measured(call: Callable[[], object], audit: Audit) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before, start = _memory("VmRSS"), time.process_time()
    sys.addaudithook(audit)
    outcome = _tried(call)
    outcome.cpu = time.process_time() - start
    outcome.memory = (_memory("VmHWM") - before) / 1024
    outcome.events = audit.events[:5]
    return outcome


def _tried(call: Callable[[], object]) -> Outcome:
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            value = call()
    except LoraExportError as error:
        return Outcome(error.code, str(error.problems[0])[:300])
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}"[:200]
        return Outcome("traceback", f"{text} at {Path(place.filename).name}:{place.lineno}")
    return Outcome("accepted", value=value if isinstance(value, str) else "")


def _memory(field_name: str) -> int:
    """Return a size from /proc/self/status, in KB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field_name}:")[2].split()[0])
